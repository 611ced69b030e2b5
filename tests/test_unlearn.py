"""Request time: model, artefact and photo in, new model out; nothing else is there to be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import oneshui_hf
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, Method, Needs, Request
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import Run, hash_file

METHODS = ["do-nothing", "gradient-ascent", "metaunlearn"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated photos as a user would have it."""
    import csv
    import io

    from PIL import Image

    from oneshui_hf.data.load import load_faces

    folder = tmp_path_factory.mktemp("photos")
    source = load_faces("synthetic")
    keep = [row for row in range(len(source)) if source.identities[row] < 20]
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "identity", *source.task.label_names])
        for row in keep:
            name = source.keys[row].replace("/", "-")
            Image.open(io.BytesIO(source.rows[row]["image"]["bytes"])).save(folder / name)
            writer.writerow([name, source.people[source.identities[row]], *source.labels[row].int().tolist()])
    return folder


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An original model on that folder, with its artefacts."""
    run = oneshui_hf.train(
        dataset=str(faces), model="tiny", forget=2, epochs=8, optimizer="adamw", keep="last", augment="flip",
        output_dir=str(tmp_path_factory.mktemp("runs") / "original"),
    )  # fmt: skip
    oneshui_hf.prepare(run, method="metaunlearn", steps=3, calibration=1)
    oneshui_hf.prepare(run, method="gradient-ascent", calibration=1)
    return run


@pytest.fixture
def photo(faces: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(next(faces.glob("*.png")), tmp_path / "portrait.png"))


@pytest.mark.parametrize("method", METHODS)
def test_no_training_data_is_needed(trained: Run, faces: Path, photo: Path, tmp_path: Path, method: str) -> None:
    away = faces.with_name("away")
    faces.rename(away)
    caches = Path(load_cache(trained))
    hidden = caches.with_name(caches.name + "-hidden")
    if caches.exists():
        caches.rename(hidden)
    try:
        result = oneshui_hf.unlearn(trained, images=[photo], method=method, output_dir=str(tmp_path / "out"))
    finally:
        away.rename(faces)
        if hidden.exists():
            hidden.rename(caches)
    assert result.record.kind == "unlearned"
    assert (result.weights == trained.weights) == (method == "do-nothing")


def load_cache(run: Run) -> str:
    """Return the folder of the Arrow data and the pixels."""
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


@dataclass(frozen=True)
class SpyOptions:
    """None."""


def spy(look: Callable[[DataAccess], Any], needs: Needs) -> type[Method[SpyOptions]]:
    class Spy(Method[SpyOptions]):
        """Looks at what it is handed."""

        summary, paper, options = "spy", "-", SpyOptions

        def apply(self, model: Any, data: DataAccess, artefact: Any, options: SpyOptions, context: Context) -> Any:
            import copy

            look(data)
            return copy.deepcopy(model)

    Spy.needs = needs
    return Spy


def offer(monkeypatch: pytest.MonkeyPatch, method: type[Method[Any]]) -> None:
    """Install a method as `spy`."""
    from oneshui_hf import plugins

    load, origin = plugins.Plugins.load, plugins.Plugins.origin
    monkeypatch.setattr(plugins.Plugins, "load", lambda self, name: method if name == "spy" else load(self, name))
    monkeypatch.setattr(plugins.Plugins, "origin", lambda self, name: "here 1.0" if name == "spy" else origin(self, name))


def test_a_plugin_is_handed_the_request_and_nothing_else(
    trained: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def look(data: DataAccess) -> None:
        seen["support"] = data.support
        seen["all"] = list(vars(data)["_granted"])
        for name in ("train", "retain", "forget", "val"):
            with pytest.raises(OneshuiError, match=f"reads '{name}' without declaring"):
                getattr(data, name)

    offer(monkeypatch, spy(look, Needs()))
    for source in ({"images": [photo]}, {"from_split": True}):
        oneshui_hf.unlearn(trained, method="spy", output_dir=str(tmp_path / f"out{len(seen)}"), overwrite=True, **source)
        assert isinstance(seen["support"], Request)
        assert seen["all"] == ["support"]
        seen.clear()


def test_a_method_that_reads_training_data_takes_no_single_photo(
    trained: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, spy(lambda data: data.retain, Needs(apply=frozenset({"retain"}))))
    with pytest.raises(UsageError, match="reads retain at request time"):
        oneshui_hf.unlearn(trained, images=[photo], method="spy", output_dir=str(tmp_path / "out"))
    oneshui_hf.unlearn(trained, from_split=True, method="spy", output_dir=str(tmp_path / "out"))


@pytest.mark.parametrize("method", METHODS)
def test_the_original_stays_and_the_same_seed_gives_the_same_bytes(trained: Run, photo: Path, tmp_path: Path, method: str) -> None:
    before = {file: hash_file(file) for file in trained.path.rglob("*") if file.is_file()}
    state = torch.get_rng_state()
    runs = [oneshui_hf.unlearn(trained, images=[photo], method=method, output_dir=str(tmp_path / name)) for name in "ab"]
    assert runs[0].weights == runs[1].weights
    assert {file: hash_file(file) for file in before} == before
    assert torch.equal(torch.get_rng_state(), state)


def test_gradient_ascent_moves_up_the_loss_by_the_given_length(trained: Run, photo: Path, tmp_path: Path) -> None:
    from oneshui_hf.data.images import decode, to_pixels
    from oneshui_hf.methods import losses, norm, parameters

    run = oneshui_hf.unlearn(
        trained, images=[photo], method="gradient-ascent", length=1e-4, labels="Hat,Smiling", output_dir=str(tmp_path / "out")
    )
    (old, preprocess, task), (new, *_) = load_model(trained.path), load_model(run.path)
    step = {name: parameters(new)[name] - part for name, part in parameters(old).items()}
    length = 1e-4 * norm(parameters(old)).item()
    assert norm(step).item() == pytest.approx(length, rel=1e-3)
    assert run.record.report["step_length"] == pytest.approx(length)
    assert run.record.report["labels"] == "given"
    pixels = preprocess(torch.from_numpy(to_pixels(decode(photo), preprocess.size)).unsqueeze(0))
    labels = torch.tensor([[float(name in ("Hat", "Smiling")) for name in task.label_names]])
    with torch.no_grad():
        before, after = (losses(m(pixel_values=pixels).logits, labels, task.kind).item() for m in (old, new))
    assert after > before


def test_metaunlearn_knows_its_people_and_serves_strangers(trained: Run, photo: Path, tmp_path: Path) -> None:
    unknown = oneshui_hf.unlearn(trained, images=[photo], method="metaunlearn", output_dir=str(tmp_path / "a"))
    assert unknown.record.report["unknown_people"] == 1
    from oneshui_hf.runs import read_json

    private = read_json(trained.artefact("metaunlearn") / "private.json")
    person = next(name for name, row in private["rows"].items() if row in private["simulated"])
    never = next(name for name, row in private["rows"].items() if row not in private["simulated"])
    known = oneshui_hf.unlearn(trained, images=[photo], identity=[person], method="metaunlearn", output_dir=str(tmp_path / "b"))
    assert known.record.report["unknown_people"] == 0
    assert known.weights != unknown.weights
    # Somebody whose row was never learned is served like anybody unknown.
    other = oneshui_hf.unlearn(trained, images=[photo], identity=[never], method="metaunlearn", output_dir=str(tmp_path / "c"))
    assert other.weights == unknown.weights


def test_the_preset_of_the_paper_serves_named_people_alone(trained: Run, photo: Path, tmp_path: Path) -> None:
    oneshui_hf.prepare(trained, method="metaunlearn", preset="paper", overwrite=True)
    with pytest.raises(OneshuiError, match="cannot serve an unnamed person"):
        oneshui_hf.unlearn(trained, images=[photo], method="metaunlearn", output_dir=str(tmp_path / "a"))
    run = oneshui_hf.unlearn(trained, from_split=True, method="metaunlearn", output_dir=str(tmp_path / "b"))
    assert run.record.report["method_options"]["step"] == "raw"
    assert run.record.report["method_options"]["eta"] == 0.1
    oneshui_hf.prepare(trained, method="metaunlearn", steps=3, calibration=1, overwrite=True)


def test_the_receipt_names_no_photo_and_no_person(trained: Run, photo: Path, tmp_path: Path) -> None:
    secret = photo.rename(photo.with_name("jane-doe-passport.png"))
    run = oneshui_hf.unlearn(trained, images=[secret], method="gradient-ascent", output_dir=str(tmp_path / "out"))
    assert "jane-doe" not in (run.path / "oneshui.json").read_text()


def test_the_support_photo_is_in_no_training_set(trained: Run) -> None:
    from oneshui_hf.stages.processes import make_accelerator
    from oneshui_hf.stages.sets import open_data

    data = open_data(trained, make_accelerator())
    support = set(data.sets["support"].rows.tolist())
    assert len(support) == 2
    for name in ("train", "retain", "forget", "val", "test", "reserved"):
        assert not support & set(data.sets[name].rows.tolist())


def test_several_photos_of_several_people(trained: Run, faces: Path, tmp_path: Path) -> None:
    photos = sorted(faces.glob("*.png"))[:3]
    run = oneshui_hf.unlearn(trained, images=photos, method="gradient-ascent", output_dir=str(tmp_path / "out"))
    assert run.record.report["photos"] == 3
    with pytest.raises(UsageError, match="--identity is given 2 times for 3 photos"):
        oneshui_hf.unlearn(trained, images=photos, identity=["a", "b"], method="gradient-ascent", output_dir=str(tmp_path / "no"))
