"""A named data set without --data-dir: the folder that is found, and the copy on the Hub that `train --download` takes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf import api
from oneshui_hf.cli.show_hub import train_after_question
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.reporting import SILENT, Reporter
from oneshui_hf.runs import Run
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.download import download_question, with_hub_copy
from support.commands import Oneshui, sentence

CELEBA = TrainOptions(dataset="celeba", download=True)


def test_the_folder_that_was_found_is_used_and_recorded(
    oneshui: Oneshui, celeba_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = celeba_folder(people=9, name="data/celeba")
    monkeypatch.chdir(tmp_path)
    train = ["train", "--dataset", "celeba", "--model", "tiny", "--epochs", 1, "--forget", 1, "--download"]  # there is nothing to fetch
    code, out, err = oneshui(*train)
    assert (code, "runs/celeba-seed0" in out) == (0, True), err
    assert f"Data set 'celeba' is read from {folder}, since --data-dir is not given." in " ".join(err.split())
    options = Run.open("runs/celeba-seed0").record.options
    assert (options["dataset"], options["data_dir"], options["download"]) == ("celeba", str(folder), False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # later commands find it from any folder
    assert oneshui("retrain", tmp_path / "runs" / "celeba-seed0", "--output-dir", tmp_path / "oracle")[0] == 0
    monkeypatch.chdir(tmp_path)
    for command in (["data", "check"], ["data", "split", "--forget", 1]):
        code, _, err = oneshui(*command, "--dataset", "celeba")
        assert (code, f"is read from {folder}" in " ".join(err.split())) == (0, True), err


def test_the_copy_on_the_hub_replaces_a_data_set_that_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_hub_copy(CELEBA) == TrainOptions(dataset="flwrlabs/celeba")
    question = download_question(CELEBA)
    assert question is not None
    assert "flwrlabs/celeba from the Hub (11.7 GB to download, if not cached)?" in question
    with pytest.raises(OneshuiError, match="HF_HUB_OFFLINE disables the Hub; unset it to reach flwrlabs/celeba"):
        api.train(dataset="celeba", download=True)


class Answering(Reporter):
    """Answers every question with the same word, and keeps the questions."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.questions = answer, list[str]()

    def confirm(self, question: str) -> bool:
        self.questions.append(question)
        return self.answer


@pytest.mark.parametrize(("terminal", "answer"), [(True, True), (True, False), (False, False)])
def test_a_terminal_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: bool) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal, raising=False)
    trained: list[object] = []
    monkeypatch.setattr(api, "train", lambda **options: trained.append(options))
    reporter = Answering(answer)
    if terminal and not answer:
        with pytest.raises(UsageError, match="Not confirmed; nothing was downloaded"):
            train_after_question(dataset="celeba", download=True, reporter=reporter)
    else:
        train_after_question(dataset="celeba", download=True, reporter=reporter)
    assert len(reporter.questions) == terminal
    assert len(trained) == (answer or not terminal)


def test_nothing_is_asked_without_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(UsageError, match="--epochs of train must be at least 1"):
        train_after_question(dataset="celeba", epochs=0, reporter=SILENT)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--dataset", "celeba", "--data-dir", "."], "--data-dir names the folder of the data set, so --download has nothing to fetch"),
        (["--dataset", "celebahq"], "none of 'celebahq' is known"),
        (["--dataset", "synthetic"], "none of 'synthetic' is known"),
    ],
)
def test_download_of_what_is_not_on_the_hub_is_one_sentence(
    oneshui: Oneshui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = oneshui("train", *words, "--download")
    assert (code, reason in sentence(err)) == (2, True)
