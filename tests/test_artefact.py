"""Artefacts on disk: bound to a method and to a model, whole or refused, with what is personal kept apart."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods.artefact import Artefact

WEIGHTS = "a" * 64


def made(private: bool = True) -> Artefact:
    table = torch.arange(12.0).view(4, 3)
    artefact = Artefact(
        tensors={
            "net.weight": torch.randn(3, 2).T,
            "unknown": table[:1],
            "count": torch.tensor(7),
            "half": torch.ones(2).half(),
        },
        values={"length": 1e-3},
        options={"epochs": 2, "step": "raw"},
        report={"history": [1.5, 1.25]},
    )
    if private:
        artefact.private_tensors = {"known": table[1:] + 0.123}
        artefact.private_values = {"rows": {"Ada Lovelace": 1}}
    return artefact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run/methods/m"


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("private", [False, True])
def test_saved_and_loaded_again_it_is_the_same(folder: Path, private: bool) -> None:
    artefact = made(private)
    artefact.save(folder, "m", WEIGHTS, replace=False)
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert same(loaded.tensors, artefact.tensors)
    assert same(loaded.private_tensors, artefact.private_tensors)
    for name in ("values", "private_values", "options", "report"):
        assert getattr(loaded, name) == getattr(artefact, name)


def test_an_empty_one_is_saved_and_loaded(folder: Path) -> None:
    Artefact().save(folder, "m", WEIGHTS, replace=False)
    assert Artefact.load(folder, "m", WEIGHTS) == Artefact()


def test_what_is_personal_lies_in_files_of_its_own(folder: Path) -> None:
    artefact = made()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files) == {"artefact.json", "artefact.safetensors", "private.json", "private.safetensors"}
    secret = artefact.private_tensors["known"].numpy().tobytes()
    assert secret in files["private.safetensors"]
    assert b"Lovelace" in files["private.json"]
    for name in ("artefact.json", "artefact.safetensors"):
        assert b"Lovelace" not in files[name]
        assert secret not in files[name]


def test_a_view_of_a_private_table_does_not_take_the_table_along(folder: Path) -> None:
    table = torch.arange(12.0).view(4, 3)
    Artefact(tensors={"unknown": table[:1]}).save(folder, "m", WEIGHTS, replace=False)
    data = (folder / "artefact.safetensors").read_bytes()
    assert table[0].numpy().tobytes() in data
    assert table[1].numpy().tobytes() not in data


def test_without_anything_personal_there_are_no_private_files(folder: Path) -> None:
    made(private=False).save(folder, "m", WEIGHTS, replace=False)
    assert {file.name for file in folder.iterdir()} == {"artefact.json", "artefact.safetensors"}


def test_it_loads_where_the_private_files_were_left_out(folder: Path) -> None:
    artefact = made()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    for file in folder.glob("private.*"):
        file.unlink()
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert same(loaded.tensors, artefact.tensors)
    assert loaded.private_tensors == {}
    assert loaded.private_values == {}


def test_another_model_is_refused_unless_forced(folder: Path) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    with pytest.raises(OneshuiError, match=r"other weights \(aaaaaaaaaaaa, not bbbbbbbbbbbb\); prepare again, or insist with --force"):
        Artefact.load(folder, "m", "b" * 64)
    assert Artefact.load(folder, "m", "b" * 64, force=True).values == {"length": 1e-3}


@pytest.mark.parametrize("force", [False, True])
def test_another_method_is_refused_always(folder: Path, force: bool) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    with pytest.raises(OneshuiError, match="is not an artefact of method 'other' that this version reads"):
        Artefact.load(folder, "other", WEIGHTS, force=force)


def test_another_format_is_refused(folder: Path) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    header = json.loads((folder / "artefact.json").read_text())
    (folder / "artefact.json").write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(OneshuiError, match="that this version reads"):
        Artefact.load(folder, "m", WEIGHTS)


def test_what_was_not_prepared_names_the_run_and_the_command(folder: Path) -> None:
    with pytest.raises(UsageError, match="Method 'm' has not been prepared for .*run; run `oneshui prepare` first"):
        Artefact.load(folder, "m", WEIGHTS)


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors", "private.json", "private.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 40])
def test_a_damaged_file_is_one_sentence(folder: Path, file: str, content: bytes) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    (folder / file).write_bytes(content)
    with pytest.raises(OneshuiError) as raised:
        Artefact.load(folder, "m", WEIGHTS)
    assert "methods/m" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors"])
def test_a_missing_file_is_one_sentence(folder: Path, file: str) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    (folder / file).unlink()
    with pytest.raises(OneshuiError, match=f"methods/m.*({file} is missing|is damaged)"):
        Artefact.load(folder, "m", WEIGHTS)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    file = folder / "artefact.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(.*\); prepare again"):
        Artefact.load(folder, "m", WEIGHTS)


def test_a_header_that_lacks_a_part_is_refused(folder: Path) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    header = json.loads((folder / "artefact.json").read_text())
    for part in ("weights", "values", "options", "report"):
        (folder / "artefact.json").write_text(json.dumps({k: v for k, v in header.items() if k != part}))
        with pytest.raises(OneshuiError, match="methods/m"):
            Artefact.load(folder, "m", WEIGHTS)


def test_preparing_again_replaces_the_whole_folder(folder: Path) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    made(private=False).save(folder, "m", WEIGHTS, replace=True)
    assert {file.name for file in folder.iterdir()} == {"artefact.json", "artefact.safetensors"}


def test_a_failing_write_leaves_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made().save(folder, "m", "b" * 64, replace=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_saving_does_not_change_the_tensors(folder: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    artefact = Artefact(tensors={"w": weight})
    artefact.save(folder, "m", WEIGHTS, replace=False)
    assert artefact.tensors["w"] is weight
    assert not Artefact.load(folder, "m", WEIGHTS).tensors["w"].requires_grad
