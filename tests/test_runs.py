"""Run directories: atomic writes, which paths may be written, and which folders are runs."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from oneshui_hf.api_run import newest_run
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.runs import (
    Kind,
    Record,
    Run,
    hash_file,
    hash_weights,
    read_json,
    require_writable,
    require_writable_file,
    write_json,
    write_record,
)


def a_run(path: Path, kind: Kind = "original", **changes: object) -> Path:
    write_record(path, Record(kind=kind, seed=3, options={"lr": 1e-4}, dataset={"name": "made"}, **changes))  # type: ignore[arg-type]
    return path


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    file = tmp_path / "a/b/c.json"
    write_json(file, {"b": 1, "a": "ü"})
    assert file.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    assert read_json(file) == {"b": 1, "a": "ü"}
    assert [f.name for f in file.parent.iterdir()] == ["c.json"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_missing_or_empty_folder_is_writable(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for overwrite in (False, True):
        require_writable(tmp_path / "free", overwrite=overwrite)
        require_writable(tmp_path / "empty", overwrite=overwrite)


def test_a_run_is_writable_with_overwrite_only(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    require_writable(run, overwrite=True)
    with pytest.raises(UsageError, match="run exists; name another --output-dir, or replace it with --overwrite"):
        require_writable(run, overwrite=False)


def test_a_folder_that_is_not_a_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not a run, so --overwrite does not replace it"):
        require_writable(tmp_path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_run(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="file is a file; name a folder with --output-dir"):
            require_writable(path, overwrite=overwrite)


@pytest.mark.parametrize("inside", ["run", "run/inside", "."])
def test_a_run_is_never_written_over_its_source(tmp_path: Path, inside: str) -> None:
    run = a_run(tmp_path / "run")
    with pytest.raises(UsageError, match="is, contains or is inside the source run"):
        require_writable(tmp_path / inside, overwrite=True, source=run)
    require_writable(tmp_path / "run-oracle", overwrite=False, source=run)


def test_a_file_is_writable_if_it_is_missing_or_may_be_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "new" / "preset.json"
    require_writable_file(file, overwrite=False)
    assert not file.parent.exists()
    write_json(file, {})
    require_writable_file(file, overwrite=True)
    with pytest.raises(UsageError, match=r"preset.json exists; name another file with --output, or replace it with --overwrite\.$"):
        require_writable_file(file, overwrite=False)
    with pytest.raises(UsageError, match="preset.json exists; resume with --resume, name another file with --split,"):
        require_writable_file(file, overwrite=False, resumable=True, flag="--split")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="new is a folder; name a file with --output"):
            require_writable_file(file.parent, overwrite=overwrite)
        with pytest.raises(UsageError, match="preset.json is a file; name another file with --output"):
            require_writable_file(file / "other.json", overwrite=overwrite)


def test_a_missing_permission_is_reported_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []
    monkeypatch.setattr(os, "access", lambda path, mode: checked.append(path))
    with pytest.raises(UsageError, match="There is no permission to write in .*; name another file with --output"):
        require_writable_file(tmp_path / "new" / "preset.json", overwrite=False)
    with pytest.raises(UsageError, match="There is no permission to write in .*; name a folder with --output-dir"):
        require_writable(tmp_path / "runs" / "new", overwrite=False)
    assert checked == [tmp_path, tmp_path]  # the nearest existing folder


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run", parent={"run": "x", "weights": "y"}, weights="abc", report={"a": [1]})
    run = Run.open(path)
    assert run.record == Record(
        "original", 3, {"lr": 1e-4}, {"name": "made"}, "complete", {"run": "x", "weights": "y"}, "abc", report={"a": [1]}
    )
    assert {"torch", "transformers", "oneshui-hf"} <= set(run.record.versions)
    assert run.artefact("m") == path / "methods/m"


def test_unknown_keys_of_a_record_are_ignored(tmp_path: Path) -> None:
    path = a_run(tmp_path / "run")
    write_json(path / "oneshui.json", read_json(path / "oneshui.json") | {"later": 1})
    assert Run.open(path).record.seed == 3


def test_a_missing_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no run at .*absent; create one with `oneshui train`"):
        Run.open(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"is not a run: it contains no oneshui\.json"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "has format None, this version reads 1"),
        ('{"format": 2}', "has format 2, this version reads 1: upgrade oneshui-hf"),
        ('{"format": 1, "kind": "original"}', "is not complete: it has no field 'seed'"),
        ("[]", r"oneshui\.json"),
        ("null", r"oneshui\.json"),
    ],
)
def test_a_damaged_record_is_reported_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "oneshui.json").write_text(text)
    with pytest.raises(OneshuiError, match=message):
        Run.open(tmp_path)


def test_require_complete_refuses_an_unfinished_run(tmp_path: Path) -> None:
    run = Run.open(a_run(tmp_path / "run", state="training"))
    with pytest.raises(UsageError, match="has not finished training; run the same command with --resume"):
        run.require_complete()
    finished = Run.open(a_run(tmp_path / "other"))
    assert finished.require_complete() is finished


def test_newest_run_returns_the_newest_finished_run_of_the_kind(tmp_path: Path) -> None:
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
    assert newest_run(tmp_path).path.name == "b"
    assert newest_run(tmp_path, ("oracle", "unlearned")).path.name == "c"


def test_newest_run_without_a_finished_run_is_a_usage_error(tmp_path: Path) -> None:
    a_run(tmp_path / "d", state="training")
    with pytest.raises(UsageError, match="no finished run in .*; train one with `oneshui train`, or name one with --run"):
        newest_run(tmp_path)
    with pytest.raises(UsageError, match="no finished run"):
        newest_run(tmp_path / "absent")


def test_newest_run_skips_a_damaged_run(tmp_path: Path) -> None:
    a_run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/oneshui.json").write_text("{")
    assert newest_run(tmp_path).path.name == "good"


def test_the_hash_of_weights_is_that_of_the_file(tmp_path: Path) -> None:
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
    with pytest.raises(OneshuiError, match=r"contains no model\.safetensors; pickled checkpoints are not read"):
        hash_weights(tmp_path)


def test_numbers_of_a_record_survive(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1, "n": 2**62})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1, "n": 2**62}


def test_a_checksum_detects_any_change() -> None:
    from oneshui_hf.runs import has_valid_checksum, with_checksum

    whole = with_checksum({"tow": 61.5, "sets": {"forget": [1, None]}})
    assert has_valid_checksum(whole)
    assert not has_valid_checksum(whole | {"tow": 62.5})
    assert not has_valid_checksum({key: value for key, value in whole.items() if key != "sets"})
    assert not has_valid_checksum({"tow": 61.5})
