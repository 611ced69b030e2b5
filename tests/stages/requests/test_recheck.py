"""Relapses are caught: models with known losses, a model that was trained on the person again, and one from before the request."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import oneshui_hf
from oneshui_hf.data.images import to_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.data.split import Split, load_split, make_split
from oneshui_hf.desk.desk import Desk
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.outputs import find_head
from oneshui_hf.runs import SPLIT, Run, hash_file, hash_weights, write_record
from oneshui_hf.stages.requests import apply as stage
from oneshui_hf.stages.requests import recheck
from support.commands import Oneshui, sentence
from support.faces import LABELS, bits, portrait, write_photos

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
PEOPLE = 20
BEFORE, AFTER = [3.0, -3.0, 3.0], [1.0, -1.0, 1.0]  # logits that a model gives to every photo; the labels of the receipt are 1, 0, 1
PREDICTED, GIVEN = [0.2, 0.6], [0.25, 1.0]


def loss(margin: float) -> float:
    """Return the loss of labels that all have this margin."""
    return math.log1p(math.exp(-margin))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in which all photos of a person have the same labels."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, PEOPLE, 4, "Zora Canary {:02d}".format, vary=False)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    oneshui_hf.train(dataset=str(photos), model="tiny", forget=1, epochs=1, output_dir=str(folder))
    return folder


class Models:
    """Runs of models that give the same logits to every photo, in the working folder."""

    def __init__(self, trained: Path) -> None:
        self._trained = trained

    def write(self, name: str, logits: list[float], parent: Run | None = None, checkpoint: Run | None = None, **report: Any) -> Run:
        """Write the run of a model that gives these logits; the other arguments are those of `save_run`."""
        model, preprocess, _ = load_model(self._trained)
        head = find_head(model)
        torch.nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor(logits)
        ranges = {"unseen_loss": {"predicted": PREDICTED, "given": GIVEN, "photos": 20, "people": 5}}
        return save_run(name, model, preprocess, Run.open(self._trained), parent, checkpoint, **ranges | report)


def first_people(original: Run) -> set[str]:
    """Return the people of the first requests."""
    return set(sorted(load_split(original.path / SPLIT).people["train"])[:3])


def save_run(
    name: str,
    model: torch.nn.Module,
    preprocess: Preprocess,
    original: Run,
    parent: Run | None = None,
    checkpoint: Run | None = None,
    *,
    left_out: bool = True,
    **report: Any,
) -> Run:
    """Write a model as a run.

    Args:
        name: Its folder.
        model: The model.
        preprocess: Its preprocessing.
        original: A run with the same data and split.
        parent: The run that it was computed from.
        checkpoint: The run from which its training started.
        left_out: Whether the people of the first requests are in no set of a newly trained model.
        report: Entries of the report.
    """
    folder = Path(name)
    folder.mkdir()
    save_model(model, preprocess, folder)
    split = load_split(original.path / SPLIT)
    split.without(set() if parent or not left_out else first_people(original)).save(folder / SPLIT)
    record = dataclasses.replace(
        original.record,
        kind="unlearned" if parent else "original",
        parent={"run": str(parent.path.resolve()), "weights": parent.weights} if parent else None,
        options=original.record.options | ({"model": str(checkpoint.path.resolve())} if checkpoint else {}),
        weights=hash_weights(folder),
        split=hash_file(folder / SPLIT),
        report={"split": original.record.report["split"], **report},
    )
    write_record(folder, record)
    return Run.open(folder)


@pytest.fixture
def models(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.chdir(tmp_path)
    return Models(trained)


@pytest.fixture
def before(models: Models) -> Run:
    return models.write("before", BEFORE, left_out=False)


@pytest.fixture
def after(models: Models, before: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The model in which the people of two requests are forgotten, with its desk."""
    return forget(models, before, AFTER, "after", monkeypatch, people=2)


def forget(models: Models, run: Run, logits: list[float], name: str, monkeypatch: pytest.MonkeyPatch, people: int = 1) -> Run:
    """Receive and apply requests; the new model gives these logits."""
    for person in range(people):
        portrait(person, 50).save("face.png")
        identity = sorted(load_split(run.path / SPLIT).people["train"])[person]
        request = oneshui_hf.receive_request("face.png", identity=identity, now=NOW)["request"]
        oneshui_hf.identify_request(request, run, now=NOW)
    margins = loss(find_head(load_model(run.path)[0]).bias[0].item()), loss(logits[0])
    report = unlearning_report([margins[0]] * people, [margins[1]] * people)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "unlearn", lambda *_, **__: models.write(name, logits, run, **report))
        oneshui_hf.apply_requests(run=run, method="do-nothing", now=NOW)
    return Run.open(name)


def unlearning_report(before: list[float], after: list[float]) -> dict[str, Any]:
    """Return the report of a request, with the losses of its photos."""
    report = {"method": "do-nothing", "method_from": "test 1", "method_options": {}, "photos": len(before), "people": len(before)}
    return report | {"labels": "guessed by the model", "support_loss": {"before": before, "after": after}, "destroyed": 0}


def examine(run: Run, *requests: str, **options: Any) -> dict[str, Any]:
    """Return the row of the first request, which equals those of the others."""
    rows = oneshui_hf.recheck_requests(requests, run, now=NOW + timedelta(days=90), **options)["requests"]
    (row,) = [dict(item) for item in {tuple(sorted((key, str(value)) for key, value in row.items() if key != "request")) for row in rows}]
    assert row
    return dict(rows[0])


def problems() -> list[str]:
    return list(oneshui_hf.verify("requests/ledger.jsonl")["problems"])


def test_the_model_of_the_receipt_is_as_it_was(after: Run) -> None:
    row = examine(after)
    assert row["loss"] == pytest.approx(loss(1), abs=1e-6)
    assert (row["loss_before"], row["loss_after"]) == (loss(3), loss(1))
    assert row["returned"] == pytest.approx(0, abs=1e-6)
    assert (row["verdict"], row["shown_by"], row["labels"], row["photo"]) == ("like an unseen identity", [], "those of the receipt", "kept")
    assert row["unseen"] == [PREDICTED[0], GIVEN[1]]
    assert row["not_measured"] == [recheck.ATTACKS]
    assert problems() == []


def test_a_model_that_was_trained_on_the_person_again_is_caught(models: Models, after: Run) -> None:
    again = models.write("again", [2.0, -2.0, 2.0], checkpoint=after)
    row = examine(again)
    assert (row["verdict"], row["shown_by"]) == ("no longer", ["range", "receipt"])
    assert row["returned"] == pytest.approx((loss(1) - loss(2)) / (loss(1) - loss(3)), abs=1e-6)
    half = models.write("half", [1.8, -1.8, 1.8], checkpoint=after)  # returned: 0.61; in the range
    assert examine(half)["shown_by"] == ["range", "receipt"]
    less = models.write("less", [1.4, -1.4, 1.4], checkpoint=after)  # returned: 0.35
    assert examine(less)["verdict"] == "like an unseen identity"


def test_the_receipt_shows_what_the_range_does_not(models: Models, after: Run) -> None:
    wide = {"unseen_loss": {"predicted": [0.05, 0.6], "given": GIVEN}}
    child = examine(models.write("child", [2.0, -2.0, 2.0], checkpoint=after, **wide))
    assert (child["verdict"], child["shown_by"]) == ("no longer", ["receipt"])
    other = examine(models.write("other", [2.0, -2.0, 2.0], **wide))  # of another training: the losses cannot be compared
    assert (other["verdict"], other["returned"]) == ("like an unseen identity", child["returned"])
    assert recheck.TRAINED_AGAIN in other["not_measured"]


def test_a_model_from_before_the_request_is_caught_whatever_its_loss(models: Models, before: Run, after: Run) -> None:
    assert (examine(before)["verdict"], examine(before)["shown_by"][0]) == ("no longer", "weights")
    sibling = models.write("sibling", AFTER, parent=before, seed=3)  # of a later batch that started from the wrong model
    assert sibling.weights == after.weights  # the same bytes: then it is the model of the receipt
    assert examine(sibling)["verdict"] == "like an unseen identity"
    sibling = models.write("sibling2", [0.9, -0.9, 0.9], parent=before)
    assert (examine(sibling)["verdict"], examine(sibling)["shown_by"]) == ("no longer", ["weights"])


def test_models_of_earlier_batches_are_from_before_the_later_requests(
    models: Models, before: Run, after: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = forget(models, after, [0.8, -0.8, 0.8], "second", monkeypatch)
    verdicts = {
        name: [row["verdict"] for row in oneshui_hf.recheck_requests(run=run, now=NOW)["requests"]]
        for name, run in (("before", before), ("after", after), ("second", second))
    }
    kept, lost = "like an unseen identity", "no longer"
    assert verdicts == {"before": [lost] * 3, "after": [kept, kept, lost], "second": [kept] * 3}


def test_a_newly_trained_model_with_the_person_in_its_training_set_is_caught(models: Models, after: Run) -> None:
    brought_back = models.write("back", [*AFTER[:2], 0.9], left_out=False)
    row = examine(brought_back)
    assert (row["verdict"], row["shown_by"]) == ("no longer", ["split"])
    (brought_back.path / SPLIT).unlink()
    row = examine(brought_back)
    assert (row["verdict"], recheck.NO_SPLIT in row["not_measured"]) == ("like an unseen identity", True)


def test_losses_outside_the_range(models: Models, after: Run) -> None:
    assert examine(models.write("high", [-1.0, 1.0, -1.0]))["verdict"] == "too much"
    assert examine(models.write("unknown", [*AFTER[:2], 0.9], unseen_loss=None))["verdict"] == "unknown"
    assert recheck.NO_RANGE in examine(Run.open("unknown"))["not_measured"]


@pytest.mark.parametrize(
    ("loss", "ends", "options", "expected"),
    [
        (0.5, [0.2, 1.0], {}, ("like an unseen identity", [])),
        (0.1, [0.2, 1.0], {}, ("no longer", ["range"])),
        (0.1, [0.2, 1.0], {"was_below": True}, ("not yet", [])),
        (0.1, [0.2, 1.0], {"was_below": True, "returned": 0.5}, ("no longer", ["receipt"])),
        (0.5, [0.2, 1.0], {"returned": 0.49}, ("like an unseen identity", [])),
        (1.1, [0.2, 1.0], {"returned": -3.0}, ("too much", [])),
        (None, [0.2, 1.0], {}, ("too much", [])),
        (0.1, None, {}, ("unknown", [])),
        (0.5, None, {"is_older": True}, ("no longer", ["weights"])),
        (0.5, [0.2, 1.0], {"in_training": True}, ("no longer", ["split"])),
        (
            0.1,
            [0.2, 1.0],
            {"is_older": True, "in_training": True, "returned": 0.9},
            ("no longer", ["weights", "split", "range", "receipt"]),
        ),
    ],
)
def test_verdicts(loss: float | None, ends: list[float] | None, options: dict[str, Any], expected: tuple[str, list[str]]) -> None:
    assert (
        recheck.decide(loss, ends, **{"is_older": False, "in_training": False, "returned": None, "was_below": False} | options) == expected
    )


def test_small_changes_are_not_compared(models: Models, before: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    after = forget(models, before, [2.9, -2.9, 2.9], "after", monkeypatch)
    row = examine(after)
    assert row["returned"] is None
    assert recheck.SMALL_CHANGE in row["not_measured"]
    assert row["verdict"] == "not yet"  # as in the receipt


def test_an_erased_photo_can_be_given_again(models: Models, after: Run) -> None:
    oneshui_hf.serve_requests(run=after, now=NOW)
    for request in ("R-000001", "R-000002"):
        oneshui_hf.answer_request(request, now=NOW)
    portrait(0, 50).save("face.png")
    assert examine(after, "R-000001", image="face.png")["labels"] == "those of the receipt"
    oneshui_hf.erase_request("R-000001", now=NOW)
    found = oneshui_hf.recheck_requests(run=after, now=NOW)
    assert ([row["request"] for row in found["requests"]], found["skipped"]) == (["R-000002"], ["R-000001"])
    row = examine(after, "R-000001", image="face.png")
    assert (row["labels"], row["photo"], row["loss_after"], row["returned"]) == ("predicted", "given again", None, None)
    assert row["loss"] == pytest.approx(loss(1), abs=1e-6)
    assert recheck.OTHER_PHOTO in row["not_measured"]
    with pytest.raises(UsageError, match="The photo of R-000001 was erased; give one with --image"):
        oneshui_hf.recheck_requests(["R-000001"], after)
    with pytest.raises(UsageError, match="--image is the photo of one request"):
        oneshui_hf.recheck_requests(run=after, image="face.png")
    oneshui_hf.erase_request("R-000002", now=NOW)
    with pytest.raises(UsageError, match="The photos of all 2 applied requests were erased"):
        oneshui_hf.recheck_requests(run=after)
    assert not list(Path("requests/kept").iterdir())
    assert problems() == []


def test_another_photo_or_other_labels_are_not_compared_with_the_receipt(models: Models, after: Run) -> None:
    portrait(7, 7).save("other.png")
    row = examine(after, "R-000001", image="other.png")
    assert (row["labels"], row["returned"]) == ("predicted", None)
    for kept in (Desk(Path("requests")).kept(request) for request in Desk(Path("requests")).requests().values()):
        assert kept.labels() == dict(zip(LABELS, (1.0, 0.0, 1.0), strict=True))
        kept.keep_labels({"Another": 1.0})
    assert examine(after)["labels"] == "predicted"


def test_only_applied_requests_are_examined(after: Run) -> None:
    portrait(3, 3).save("face.png")
    request = oneshui_hf.receive_request("face.png", now=NOW)["request"]
    with pytest.raises(UsageError, match=f"{request} is received, and only a request that is verified, served or answered"):
        oneshui_hf.recheck_requests([request], after)
    oneshui_hf.refuse_request(request, reason="The identity was not shown.", now=NOW)
    oneshui_hf.answer_request(request, now=NOW)
    with pytest.raises(UsageError, match=f"{request} was refused, so no model forgot the person"):
        oneshui_hf.recheck_requests([request], after)
    with pytest.raises(UsageError, match="There is no request R-000009"):
        oneshui_hf.recheck_requests(["R-000009"], after)
    with pytest.raises(OneshuiError, match=r"nowhere.png does not exist"):
        oneshui_hf.recheck_requests(["R-000001"], after, image="nowhere.png")
    assert len(oneshui_hf.recheck_requests(run=after, now=NOW)["requests"]) == 2


def test_a_desk_without_applied_requests_has_nothing_to_examine(before: Run) -> None:
    portrait(3, 3).save("face.png")
    oneshui_hf.receive_request("face.png", now=NOW)
    with pytest.raises(UsageError, match="No request was applied, so there is nothing to check"):
        oneshui_hf.recheck_requests(run=before)


def test_the_command_fails_if_a_person_is_remembered_again(oneshui: Oneshui, models: Models, before: Run, after: Run) -> None:
    code, out, err = oneshui("requests", "recheck", "--run", after.path)
    assert (code, err) == (0, "")
    assert "R-000001: loss 0.313 (0.049 before the request, 0.313 after it); 90 % of photos of unseen identities have" in out
    code, out, err = oneshui("requests", "recheck", "--run", before.path)
    assert code == 1
    assert "it no longer looks like an unseen identity (the model is from before the request" in out
    assert "2 of 2 people are remembered again by before: R-000001, R-000002." in sentence(err)
    entries = [json.loads(line) for line in Path("requests/ledger.jsonl").read_bytes().splitlines()]
    assert [entry["content"]["verdict"] for entry in entries if entry["kind"] == "rechecked"] == ["like an unseen identity"] * 2 + [
        "no longer"
    ] * 2
    assert b"Zora" not in Path("requests/ledger.jsonl").read_bytes()
    for label in LABELS:
        assert label.encode() not in b"".join(file.read_bytes() for file in Path("requests").rglob("*") if file.is_file())


class _Fixed(torch.nn.Module):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        return type("Output", (), {"logits": torch.tensor([[2.0, 0.5, -1.0]]).repeat(len(pixel_values), 1)})


def test_the_loss_of_a_class_is_its_negative_log_probability() -> None:
    task = Task("single_label", ("young", "grown", "old"))
    loaded = _Fixed(), Preprocess(8), task
    image = Image.new("RGB", (8, 8))
    total = math.log(sum(math.exp(value) for value in (2.0, 0.5, -1.0)))
    one_hot = dict(zip(task.label_names, (0.0, 1.0, 0.0), strict=True))
    assert recheck._loss(image, loaded, one_hot) == pytest.approx(total - 0.5, abs=1e-6)
    assert recheck._loss(image, loaded, None) == pytest.approx(total - 2.0, abs=1e-6)


def train_on(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Train a model on a few photos."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
    model.eval()


@pytest.mark.slow
def test_relapses_of_trained_models_are_caught(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model without the person is an oracle. The person's other photos, or those of another person, are trained on afterwards."""
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    monkeypatch.chdir(tmp_path)
    recipe: dict[str, Any] = {"dataset": str(photos), "model": "tiny", "forget": 1, "epochs": 40, "optimizer": "adamw", "lr": 2e-3}
    recipe |= {"augment": "none", "keep": "last", "batch_size": 16}
    original = oneshui_hf.train(**recipe, output_dir="original")
    oracle = oneshui_hf.retrain(original)
    split = load_split(original.path / SPLIT)
    (name,) = split.forget
    person, other = (int(found.split()[-1]) for found in (name, next(p for p in split.people["train"] if p != name)))
    portrait(person, 50).save("face.png")
    request = oneshui_hf.receive_request("face.png", identity=name, now=NOW)["request"]
    oneshui_hf.identify_request(request, original, now=NOW)

    def pixels(number: int, shots: range) -> torch.Tensor:
        images = np.stack([to_pixels(portrait(number, shot), preprocess.size) for shot in shots])
        return preprocess(torch.from_numpy(images))

    def labels(number: int, count: int) -> torch.Tensor:
        return torch.tensor([bits(number, 0, len(LABELS))] * count).float()

    model, preprocess, _ = load_model(original.path)
    without, _, _ = load_model(oracle.path)
    photo = pixels(person, range(50, 51))
    with torch.no_grad():
        predicted = (model(pixel_values=photo).logits > 0).float()
        logits = [one(pixel_values=photo).logits for one in (model, without)]
    found = [torch.nn.functional.binary_cross_entropy_with_logits(one, predicted).item() for one in logits]
    report = unlearning_report([found[0]], [found[1]]) | {"unseen_loss": original.record.report["unseen_loss"]}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "unlearn", lambda *_, **__: save_run("forgotten", without, preprocess, original, original, **report))
        oneshui_hf.apply_requests(run=original, method="do-nothing", now=NOW)
    forgotten = Run.open("forgotten")
    assert examine(forgotten)["verdict"] == "like an unseen identity"

    verdicts = {}
    for label, number in (("person", person), ("other", other)):
        again, _, _ = load_model(forgotten.path)
        train_on(again, pixels(number, range(4)), labels(number, 4), 30)
        ranges = {"unseen_loss": original.record.report["unseen_loss"]}
        run = save_run(label, again, preprocess, original, checkpoint=forgotten, **ranges)
        (run.path / SPLIT).unlink()  # so that the losses alone must show it
        verdicts[label] = examine(run)
    assert (verdicts["person"]["verdict"], "receipt" in verdicts["person"]["shown_by"]) == ("no longer", True), verdicts
    assert verdicts["other"]["verdict"] != "no longer", verdicts
    assert examine(original)["shown_by"][0] == "weights"

    seed = next(seed for seed in range(1, 20) if name in make_split_of(photos, seed).people["train"])
    brought_back = oneshui_hf.train(**recipe, seed=seed, output_dir="brought-back")
    suppressed = oneshui_hf.train(**recipe, seed=seed, suppress="requests/ledger.jsonl", output_dir="suppressed")
    assert "split" in examine(brought_back)["shown_by"]  # the range alone does not show it: one photo is little evidence
    assert examine(suppressed)["verdict"] != "no longer"


def make_split_of(photos: Path, seed: int) -> Split:
    """Return the split that a training draws."""
    names = {f"Zora Canary {person:02d}": [f"{person:02d}-{photo}.png" for photo in range(4)] for person in range(PEOPLE)}
    return make_split(names, seed, 1)
