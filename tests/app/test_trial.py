"""A trial: the numbers of `unlearn`, and nothing on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import oneshui_hf
from oneshui_hf.app.choices import method_choices, require_choice
from oneshui_hf.app.messages import CollectingReporter
from oneshui_hf.app.photos import Photo
from oneshui_hf.app.workbench import Workbench
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.runs import Run
from oneshui_hf.stages.app_options import AppOptions
from oneshui_hf.vault import vault_root

METHOD = "gradient-ascent"


def contents(*folders: Path) -> dict[str, str]:
    """The hash of every file in folders."""

    def files() -> Iterator[Path]:
        for folder in folders:
            yield from (file for file in folder.rglob("*") if file.is_file())

    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files()}


def workbench(run: Run, **options: object) -> Workbench:
    return Workbench(run, AppOptions(run=str(run.path), **options), CollectingReporter())  # type: ignore[arg-type]


def test_a_trial_has_the_numbers_of_unlearn_and_writes_nothing(
    built: Run, photo_file: Path, photo_bytes: Callable[[int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, samples = tmp_path / "here", tmp_path / "samples"
    here.mkdir(), samples.mkdir()
    (samples / "a.png").write_bytes(photo_bytes(2))
    monkeypatch.chdir(here)
    bench = workbench(built, samples=str(samples))
    photo, choice = Photo.of(photo_file.read_bytes()), require_choice(bench.choices, METHOD)
    watched = (built.path.parent, here, vault_root(), tmp_path)
    before = contents(*watched)
    found = bench.try_method(photo, choice, None, CollectingReporter())
    assert contents(*watched) == before
    assert not list(built.path.parent.glob(".*"))

    made = oneshui_hf.unlearn(built, [photo_file], method=METHOD, output_dir=str(tmp_path / "new"))
    loss = made.record.report["support_loss"]
    assert found.loss["loss_before"] == pytest.approx(loss["before"][0], abs=1e-7)
    assert found.loss["loss_after"] == pytest.approx(loss["after"][0], abs=1e-7)
    assert found.loss["unseen"] == [0.1, 0.9]
    for run, value in ((built, "before"), (made, "after")):
        (row,) = oneshui_hf.predict(run, photo_file, top_k=3)
        shares = {one["label"]: one["probability"] for one in row["predictions"]}
        assert {bar.label: getattr(bar, value) for bar in found.bars} == pytest.approx(shares, abs=1e-6)
    assert torch.equal(found.maps[2], found.maps[1] - found.maps[0])
    assert found.samples is not None
    assert found.samples.photos == 1


def test_an_examination_has_the_values_of_predict(built: Run, photo_file: Path) -> None:
    found = workbench(built).examine(Photo.of(photo_file.read_bytes()), CollectingReporter())
    (row,) = oneshui_hf.predict(built, photo_file, top_k=3)
    expected = {one["label"]: one["probability"] for one in row["predictions"]}
    assert {bar.label: bar.before for bar in found.bars} == pytest.approx(expected, abs=1e-6)
    assert found.match is None
    assert "has enrolled no identity" in str(found.unmatched)
    assert "dlib is not installed" in str(found.note)


def test_choices_need_no_data_but_the_photo(built: Run) -> None:
    choices = method_choices(built)
    names = [choice.name for choice in choices]
    assert METHOD in names
    assert not {"do-nothing", "fine-tuning", "scrub", "drop-shard", "exact-head", "forget-keys", "metaunlearn", "mu-mis"} & set(names)
    assert not any(choice.prepared for choice in choices)
    assert all(choice.sentence.endswith(".") for choice in choices)


def test_an_oracle_and_a_missing_choice_are_one_sentence(built: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OneshuiError, match="Choose a method first"):
        require_choice([], METHOD)
    monkeypatch.setattr(built.record, "kind", "oracle")
    with pytest.raises(UsageError, match="is an oracle"):
        workbench(built)
