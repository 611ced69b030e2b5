"""Artefacts that were changed: refused by hashes, and where the secrets are, by the seal, even if all hashes were computed again."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods.artefact import Artefact, write_header
from oneshui_hf.runs import read_json
from oneshui_hf.vault import Secrets, vault_root
from support.changed_artefacts import change_header, rewrite_as_format_1
from support.tensors import equal

WEIGHTS = "a" * 64
ADA, BOB = "Ada", "Bob"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    return vault_root()


def make(people: bool = True) -> Artefact:
    return Artefact(
        tensors={"w": torch.arange(3.0)},
        values={"length": 0.5},
        options={"strength": 1.0},
        report={"face_encoder": "dlib", "seed": 0},
        people={name: {"key": torch.ones(2)} for name in (ADA, BOB)} if people else {},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run/methods/m"
    make().save(folder, "m", WEIGHTS, replace=False)
    return folder


def load(folder: Path) -> Artefact:
    return Artefact.load(folder, "m", WEIGHTS)


def forge(folder: Path, change: Change) -> None:
    """Change `artefact.json` and compute its hashes again, without the secrets."""
    header = read_json(folder / "artefact.json")
    change(header)
    for name in ("content", "tensors"):
        header.pop(name, None)
    write_header(folder, header)


CHANGES: dict[str, Change] = {
    "an option": lambda header: header["options"].update(strength=50.0),
    "a value": lambda header: header["values"].update(length=0.9),
    "the report": lambda header: header["report"].update(face_encoder="someone/encoder"),
    "the versions": lambda header: header["versions"].update(torch="0"),
    "a new field": lambda header: header.update(more=1),
}


@pytest.mark.parametrize("people", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_header_does_not_match_its_hash(tmp_path: Path, people: bool, change: Change) -> None:
    folder = tmp_path / "other/methods/m"
    make(people).save(folder, "m", WEIGHTS, replace=False)
    header = read_json(folder / "artefact.json")
    change(header)
    (folder / "artefact.json").write_text(json.dumps(header))
    with pytest.raises(OneshuiError, match=r"methods/m has changed since it was prepared \(artefact.json does not match its hash\)"):
        load(folder)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_header_with_new_hashes_does_not_match_the_seal(folder: Path, change: Change) -> None:
    forge(folder, lambda header: None)
    assert load(folder).sealed
    forge(folder, change)
    with pytest.raises(OneshuiError, match=r"methods/m has changed since it was prepared \(its seal does not match\); prepare again\.$"):
        load(folder)


def test_changed_tensors_are_refused_also_with_new_hashes(folder: Path) -> None:
    save_file({"w": torch.arange(3.0) * -1}, folder / "artefact.safetensors")
    with pytest.raises(OneshuiError, match="artefact.safetensors does not match its hash"):
        load(folder)
    forge(folder, lambda header: None)
    with pytest.raises(OneshuiError, match="its seal does not match"):
        load(folder)


def test_a_header_without_hashes_is_refused_if_the_artefact_is_sealed(folder: Path) -> None:
    header = read_json(folder / "artefact.json")
    (folder / "artefact.json").write_text(json.dumps({k: v for k, v in header.items() if k not in ("content", "tensors")}))
    with pytest.raises(OneshuiError, match="its seal does not match"):
        load(folder)


@pytest.mark.parametrize("drop", [False, True])
def test_a_changed_index_is_refused(folder: Path, drop: bool) -> None:
    content = read_json(folder / "people.json")
    names, entries = list(content["index"]), list(content["index"].values())
    content["index"] = {names[0]: entries[0]} if drop else dict(zip(names, reversed(entries), strict=True))
    (folder / "people.json").write_text(json.dumps(content))
    with pytest.raises(OneshuiError, match="its seal does not match"):
        load(folder)


def test_the_seal_of_another_artefact_is_refused(folder: Path) -> None:
    other, artefact = folder.with_name("n"), make()
    artefact.values["length"] = 0.9
    artefact.save(other, "m", WEIGHTS, replace=False)
    (folder / "people.json").write_bytes((other / "people.json").read_bytes())
    (folder / "people.safetensors").write_bytes((other / "people.safetensors").read_bytes())
    with pytest.raises(OneshuiError, match="its seal does not match"):
        load(folder)


def test_a_sealed_artefact_cannot_pass_as_one_of_an_earlier_version(folder: Path) -> None:
    forge(folder, CHANGES["an option"])
    content = read_json(folder / "people.json")
    (folder / "people.json").write_text(json.dumps({"format": 1, "artefact": content["artefact"], "index": content["index"]}))
    found = load(folder)
    assert not found.sealed
    with pytest.raises(OneshuiError, match="cannot be decrypted"):
        found.people[ADA]


def test_an_artefact_of_an_earlier_version_is_read(folder: Path, vault: Path) -> None:
    rewrite_as_format_1(folder, vault)
    found = load(folder)
    assert list(found.people) == [ADA, BOB]
    assert equal(found.people[ADA], {"key": torch.ones(2)})
    assert not found.sealed
    assert found.destroy(ADA)
    assert list(found.people) == [BOB]


def test_data_of_another_model_is_not_decrypted(folder: Path, vault: Path) -> None:
    """Blobs are bound to the weights: without the seal, too."""
    blobs = load_file(folder / "people.safetensors")
    secrets = Secrets(vault, read_json(folder / "people.json")["artefact"])
    entry = next(name for name in blobs if "/" not in name)
    blob = blobs[entry].numpy().tobytes()
    assert secrets.decrypt(entry, "", blob, WEIGHTS)
    with pytest.raises(OneshuiError, match="cannot be decrypted"):
        secrets.decrypt(entry, "", blob, "b" * 64)


def test_without_the_secrets_an_artefact_is_read_and_not_sealed(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert load(folder).sealed
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "empty"))
    assert not load(folder).sealed
    with pytest.raises(OneshuiError, match="not on this machine"):
        change_header(folder, CHANGES["an option"])


def test_who_has_the_secrets_can_seal_a_changed_copy(folder: Path) -> None:
    change_header(folder, CHANGES["an option"])
    found = load(folder)
    assert found.sealed
    assert found.options == {"strength": 50.0}


# Values of wrong types


@pytest.mark.parametrize("name", ["method", "weights", "values", "options", "report", "format", "content", "tensors"])
@pytest.mark.parametrize("value", [None, [], {}, 7, "x", [[[[]]]], True])
def test_a_field_of_another_type_is_one_sentence(folder: Path, name: str, value: object) -> None:
    header = read_json(folder / "artefact.json")
    (folder / "artefact.json").write_text(json.dumps(header | {name: value}))
    with pytest.raises(OneshuiError, match=r"methods/m[^\n]*\.$"):
        load(folder)


@pytest.mark.parametrize("name", ["format", "artefact", "index", "seal"])
@pytest.mark.parametrize("value", [None, [], 7, "x", {"a": "b"}, [[[[]]]]])
def test_a_field_of_another_type_in_the_index_is_one_sentence(folder: Path, name: str, value: object) -> None:
    content = read_json(folder / "people.json")
    (folder / "people.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(people.json is not an index of identities\); prepare again\.$"):
        load(folder)


@pytest.mark.parametrize("file", ["artefact.json", "people.json"])
def test_deep_nesting_is_one_sentence(folder: Path, file: str) -> None:
    for depth in (80, 900, 100_000):
        (folder / file).write_text('{"values": ' + "[" * depth + "]" * depth + "}")
        with pytest.raises(OneshuiError, match=r"methods/m[^\n]*\.$"):
            load(folder)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_blobs_of_another_type_are_one_sentence(folder: Path, kind: torch.dtype) -> None:
    blobs = load_file(folder / "people.safetensors")
    save_file({name: torch.zeros(64, dtype=kind) for name in blobs}, folder / "people.safetensors")
    with pytest.raises(OneshuiError, match=r"is damaged[^\n]*prepare again\.$"):
        load(folder).people[ADA]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path, folder: Path, value: float) -> None:
    for wrong in (
        Artefact(tensors={"w": torch.tensor([1.0, value])}),
        Artefact(values={"deep": [{"length": value}]}),
        Artefact(report={"history": [value]}),
        Artefact(people={ADA: {"key": torch.tensor(value)}}),
    ):
        with pytest.raises(OneshuiError, match="gave results that are not finite, so nothing was written"):
            wrong.save(tmp_path / "wrong/methods/m", "m", WEIGHTS, replace=False)
    assert not (tmp_path / "wrong").exists()
    save_file({"w": torch.tensor([1.0, value])}, folder / "artefact.safetensors")
    for file in folder.glob("people.*"):
        file.unlink()
    forge(folder, lambda header: None)
    with pytest.raises(OneshuiError, match=r"has a number that is not finite: w\)"):
        load(folder)


@pytest.mark.parametrize("value", [None, "1", True, [1], {}])
def test_a_number_of_another_type_is_one_sentence(value: object) -> None:
    artefact = Artefact(values={"length": value, "right": 2})
    with pytest.raises(OneshuiError, match=r"^The artefact is damaged \(artefact.json contains no number 'length'\); prepare again\.$"):
        artefact.number("length")
    assert artefact.number("right") == 2
    assert artefact.number("other", 3.0) == 3.0
    with pytest.raises(OneshuiError, match="contains no number 'other'"):
        artefact.number("other")


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"w": (3,), "v": (1,)}, "lacks a tensor: v"),
        ({"w": (3, 1)}, "has a wrong shape: w"),
        ({}, "has an unknown tensor: w"),
    ],
)
def test_tensors_of_another_name_or_shape_are_one_sentence(shapes: dict[str, tuple[int, ...]], what: str) -> None:
    artefact = Artefact(tensors={"w": torch.zeros(3)})
    artefact.require_tensors({"w": (3,)})
    with pytest.raises(OneshuiError, match=rf"^The artefact is damaged, or not of this model \(artefact.safetensors {what}\); prepare"):
        artefact.require_tensors(shapes)


# Secrets that cannot be read


def break_key(folder: Path, vault: Path, name: str, content: bytes) -> Path:
    """Replace the secret of an identity."""
    secrets = Secrets(vault, read_json(folder / "people.json")["artefact"])
    file = secrets.folder / f"{read_json(folder / 'people.json')['index'][secrets.fingerprint(name)]}.key"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("content", [b"", b"short", b"l" * 33, b"w" * 32])
def test_a_damaged_secret_affects_its_identity_alone(folder: Path, vault: Path, content: bytes) -> None:
    break_key(folder, vault, BOB, content)
    people = load(folder).people
    assert list(people) == [ADA]
    assert people.unreadable == 1  # type: ignore[attr-defined]
    assert equal(people[ADA], {"key": torch.ones(2)})
    assert {name: len(parts) for name, parts in people.items()} == {ADA: 1}
    with pytest.raises(OneshuiError, match=r"is damaged[^\n]*prepare again\.$"):
        people[BOB]
    found = load(folder)
    assert found.destroy(BOB)
    assert list(found.people) == [ADA]
    assert found.people.unreadable == 0  # type: ignore[attr-defined]


def test_a_secret_without_permission_affects_its_identity_alone(folder: Path, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, read_bytes = break_key(folder, vault, BOB, b"x" * 32), Path.read_bytes
    file.chmod(0)

    def refuse(self: Path) -> bytes:  # root reads every file
        if self.stat().st_mode & 0o400:
            return read_bytes(self)
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    people = load(folder).people
    assert list(people) == [ADA]
    with pytest.raises(OneshuiError, match="cannot be read"):
        people[BOB]
    assert load(folder).destroy(BOB)
    assert not file.exists()


def test_damaged_data_affects_its_identity_alone(folder: Path, vault: Path) -> None:
    blobs = load_file(folder / "people.safetensors")
    secrets = Secrets(vault, read_json(folder / "people.json")["artefact"])
    entry = read_json(folder / "people.json")["index"][secrets.fingerprint(ADA)]
    save_file(blobs | {entry: torch.zeros(9, dtype=torch.uint8)}, folder / "people.safetensors")
    people = load(folder).people
    assert list(people) == [BOB]
    assert people.unreadable == 1  # type: ignore[attr-defined]


def test_the_files_of_an_artefact_follow_the_umask_and_secrets_are_private(tmp_path: Path, vault: Path) -> None:
    former = os.umask(0o002)
    try:
        make().save(tmp_path / "new/methods/m", "m", WEIGHTS, replace=False)
    finally:
        os.umask(former)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new/methods/m").iterdir()}
    assert modes == dict.fromkeys(("artefact.json", "artefact.safetensors", "people.json", "people.safetensors"), 0o664)
    assert {stat.S_IMODE(file.stat().st_mode) for file in vault.rglob("*.key")} == {0o600}
