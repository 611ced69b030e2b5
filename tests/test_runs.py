"""Run directories: whole files or none, what may be overwritten, and what a folder must hold to be a run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.runs import (
    Kind,
    Record,
    Run,
    claim,
    hash_file,
    hash_weights,
    new_folder,
    newest,
    read_json,
    write_bytes,
    write_json,
    write_record,
)


def a_run(path: Path, kind: Kind = "original", **changes: object) -> Path:
    write_record(path, Record(kind=kind, seed=3, options={"lr": 1e-4}, dataset={"name": "made"}, **changes))  # type: ignore[arg-type]
    return path


def full(*arguments: object, **settings: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_whole_with_its_folders(tmp_path: Path) -> None:
    file = tmp_path / "a/b/c.json"
    write_json(file, {"b": 1, "a": "ü"})
    assert file.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    assert read_json(file) == {"b": 1, "a": "ü"}
    assert [f.name for f in file.parent.iterdir()] == ["c.json"]
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    file = tmp_path / "a.json"
    write_bytes(file, b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_when_its_block_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "runs/one"
    with new_folder(folder) as scratch:
        (scratch / "file").write_text("x")
        assert not folder.exists()
    assert (folder / "file").read_text() == "x"
    assert list(folder.parent.iterdir()) == [folder]
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "one") as scratch:
        (scratch / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failing_block_keeps_the_folder_that_it_would_have_replaced(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with pytest.raises(ValueError), new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
        raise ValueError
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]
    assert [f.name for f in tmp_path.iterdir()] == ["one"]


def test_a_replaced_folder_holds_only_what_is_new(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["new"]
    assert [f.name for f in tmp_path.iterdir()] == ["one"]


def test_a_failing_rename_keeps_the_folder_that_it_would_have_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    real = os.rename

    def refuse(source: str, target: str) -> None:
        if Path(source, "new").exists():
            full()
        real(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="No space left"), new_folder(tmp_path / "one", replace=True) as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]


def test_a_folder_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/old").write_text("x")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "one") as scratch:
        (scratch / "new").write_text("y")
    assert [f.name for f in tmp_path.iterdir()] == ["one"]
    assert [f.name for f in (tmp_path / "one").iterdir()] == ["old"]


def test_a_path_that_is_free_or_empty_may_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for overwrite in (False, True):
        claim(tmp_path / "free", overwrite=overwrite)
        claim(tmp_path / "empty", overwrite=overwrite)


def test_a_run_may_be_claimed_with_overwrite_only(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    claim(run, overwrite=True)
    with pytest.raises(UsageError, match="run exists; name another --output-dir, or replace it with --overwrite"):
        claim(run, overwrite=False)


def test_a_folder_that_is_no_run_is_never_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not a run, so --overwrite leaves it alone"):
        claim(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_claimed(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file; name a folder with --output-dir"):
        claim(tmp_path / "file", overwrite=overwrite)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run", parent={"run": "x", "weights": "y"}, weights="abc", report={"a": [1]})
    run = Run.open(path)
    assert run.record == Record("original", 3, {"lr": 1e-4}, {"name": "made"}, "complete", {"run": "x", "weights": "y"}, "abc", {"a": [1]})
    assert {"torch", "transformers", "oneshui-hf"} <= set(run.record.versions)
    assert run.artefact("m") == path / "methods/m"


def test_keys_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    write_json(path / "oneshui.json", read_json(path / "oneshui.json") | {"later": 1})
    assert Run.open(path).record.seed == 3


def test_a_missing_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no run at .*absent; `oneshui train` makes one"):
        Run.open(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"is not a run: it holds no oneshui\.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "has format None, this version reads 1"),
        ('{"format": 2}', "has format 2, this version reads 1: upgrade oneshui-hf"),
        ('{"format": 1, "kind": "original"}', "is not a complete record"),
        ("[]", r"oneshui\.json"),
        ("null", r"oneshui\.json"),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "oneshui.json").write_text(text)
    with pytest.raises(OneshuiError, match=message):
        Run.open(tmp_path)


def test_an_unfinished_run_is_refused_where_a_finished_one_is_needed(tmp_path: Path) -> None:
    run = Run.open(a_run(tmp_path / "run", state="training"))
    with pytest.raises(UsageError, match="has not finished training; run the same command with --resume"):
        run.require_complete()
    finished = Run.open(a_run(tmp_path / "other"))
    assert finished.require_complete() is finished


def test_the_newest_finished_run_of_the_kind_is_found(tmp_path: Path) -> None:
    for age, (name, kind, state) in enumerate(
        [
            ("c", "oracle", "complete"),
            ("d", "original", "training"),
            ("b", "original", "complete"),
            ("a", "original", "complete"),
        ]
    ):
        path = a_run(tmp_path / name, kind, state=state)  # type: ignore[arg-type]
        os.utime(path / "oneshui.json", (1_000_000 - age, 1_000_000 - age))
    assert newest(tmp_path).path.name == "b"
    assert newest(tmp_path, ("oracle", "unlearned")).path.name == "c"


def test_without_a_finished_run_the_sentence_says_what_to_do(tmp_path: Path) -> None:
    a_run(tmp_path / "d", state="training")
    with pytest.raises(UsageError, match="no finished run in .*; train one with `oneshui train`, or name one with --run"):
        newest(tmp_path)
    with pytest.raises(UsageError, match="no finished run"):
        newest(tmp_path / "absent")


def test_one_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    a_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/oneshui.json").write_text("{")
    assert newest(tmp_path).path.name == "good"


def test_weights_are_hashed_as_they_lie_on_disk(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert hash_weights(tmp_path) == hashlib.sha256(b"weights").hexdigest() == hash_file(tmp_path / "model.safetensors")
    assert Run.open(a_run(tmp_path)).weights == hash_weights(tmp_path)


def test_shards_are_hashed_together(tmp_path: Path) -> None:
    for name, data in (("model-00001-of-00002.safetensors", b"a"), ("model-00002-of-00002.safetensors", b"b")):
        (tmp_path / name).write_bytes(data)
    before = hash_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"c")
    assert hash_weights(tmp_path) != before


def test_a_pickle_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(OneshuiError, match=r"holds no model\.safetensors; pickled checkpoints are not read"):
        hash_weights(tmp_path)


def test_numbers_of_a_record_survive(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1, "n": 2**62})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1, "n": 2**62}


def test_a_seal_is_broken_by_any_change() -> None:
    from oneshui_hf.runs import is_sealed, sealed

    whole = sealed({"tow": 61.5, "sets": {"forget": [1, None]}})
    assert is_sealed(whole)
    assert not is_sealed(whole | {"tow": 62.5})
    assert not is_sealed({key: value for key, value in whole.items() if key != "sets"})
    assert not is_sealed({"tow": 61.5})
