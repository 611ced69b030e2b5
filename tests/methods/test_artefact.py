"""Artefacts on disk: bound to a method and to a model, whole or refused, with what is personal kept apart."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import identity_store as module
from oneshui_hf.methods.artefact import Artefact
from oneshui_hf.methods.identity_store import People
from oneshui_hf.vault import Secrets, vault_root

WEIGHTS = "a" * 64
ADA, BOB, ZOE = "Ada Lovelace", "Bob", "Zoë"


@pytest.fixture(autouse=True)
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    return vault_root()


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
        artefact.people = {
            ZOE: {"key": table[1] + 0.123, "signature": torch.ones(2).half()},
            ADA: {"key": table[2] + 0.123, "signature": torch.tensor(5)},
            BOB: {},
        }
    return artefact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run/methods/m"


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("private", [False, True])
def test_saved_and_loaded_again_it_is_the_same(folder: Path, private: bool) -> None:
    artefact = made(private)
    artefact.save(folder, "m", WEIGHTS, replace=False)
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert same(loaded.tensors, artefact.tensors)
    assert list(loaded.people) == list(artefact.people)
    assert len(loaded.people) == len(artefact.people)
    assert all(same(loaded.people[person], tensors) for person, tensors in artefact.people.items())
    for name in ("values", "options", "report"):
        assert getattr(loaded, name) == getattr(artefact, name)


def test_an_empty_one_is_saved_and_loaded(folder: Path) -> None:
    Artefact().save(folder, "m", WEIGHTS, replace=False)
    assert Artefact.load(folder, "m", WEIGHTS) == Artefact()


def test_what_is_personal_lies_in_files_of_its_own_and_neither_they_nor_the_vault_tell_it(folder: Path, vault: Path) -> None:
    artefact = made()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files) == {"artefact.json", "artefact.safetensors", "people.json", "people.safetensors"}
    with safe_open(folder / "people.safetensors", "pt") as blobs:
        assert len(blobs.keys()) == 3 + 4
        heads = {len(blobs.get_tensor(name)) for name in blobs.keys() if "/" not in name}  # noqa: SIM118
    assert heads == {12 + 256 + 16}  # whatever the length of a name
    kept = [file.read_bytes() for file in vault.rglob("*") if file.is_file()]
    names = [str(path).encode() for path in (*folder.rglob("*"), *vault.rglob("*"))]
    assert len(kept) == 1 + 3
    plain = artefact.people[ADA]["key"].numpy().tobytes()
    for data in (*files.values(), *kept, *names):
        for word in ("Lovelace", "Bob", "signature"):
            assert word.encode() not in data
        assert plain not in data
    for secret in kept:
        assert not any(secret in data or secret.hex().encode() in data for data in files.values())


def test_a_view_of_a_private_table_does_not_take_the_table_along(folder: Path) -> None:
    table = torch.arange(12.0).view(4, 3)
    Artefact(tensors={"unknown": table[:1]}).save(folder, "m", WEIGHTS, replace=False)
    data = (folder / "artefact.safetensors").read_bytes()
    assert table[0].numpy().tobytes() in data
    assert table[1].numpy().tobytes() not in data


def test_without_anything_personal_there_are_no_private_files(folder: Path, vault: Path) -> None:
    made(private=False).save(folder, "m", WEIGHTS, replace=False)
    assert not vault.exists()
    assert {file.name for file in folder.iterdir()} == {"artefact.json", "artefact.safetensors"}


def test_it_loads_where_the_private_files_were_left_out(folder: Path) -> None:
    artefact = made()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    for file in folder.glob("people.*"):
        file.unlink()
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert same(loaded.tensors, artefact.tensors)
    assert loaded.people == {}


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


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors", "people.json", "people.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 40])
def test_a_damaged_file_is_one_sentence(folder: Path, file: str, content: bytes) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    (folder / file).write_bytes(content)
    with pytest.raises(OneshuiError) as raised:
        Artefact.load(folder, "m", WEIGHTS)
    assert "methods/m" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors", "people.json", "people.safetensors"])
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


def test_a_failing_write_leaves_the_old_one(folder: Path, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(folder, "m", WEIGHTS, replace=False)
    secrets = sorted(vault.rglob("*"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        made().save(folder, "m", "b" * 64, replace=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert sorted(vault.rglob("*")) == secrets


def test_saving_does_not_change_the_tensors(folder: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    artefact = Artefact(tensors={"w": weight})
    artefact.save(folder, "m", WEIGHTS, replace=False)
    assert artefact.tensors["w"] is weight
    assert not Artefact.load(folder, "m", WEIGHTS).tensors["w"].requires_grad


# What concerns single people.


def saved(folder: Path, people: Mapping[str, Mapping[str, torch.Tensor]] | None = None) -> Artefact:
    artefact = made()
    artefact.people = artefact.people if people is None else people
    artefact.save(folder, "m", WEIGHTS, replace=False)
    return Artefact.load(folder, "m", WEIGHTS)


def test_one_tensor_of_one_person_is_all_that_is_decrypted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, opened = saved(folder), []
    right = Secrets.open

    def spy(self: Secrets, entry: str, place: str, sealed: bytes) -> bytes:
        opened.append((entry, place))
        return right(self, entry, place, sealed)

    monkeypatch.setattr(Secrets, "open", spy)
    assert ADA in loaded.people
    assert "Ada" not in loaded.people
    assert len(loaded.people) == 3
    assert opened == []
    assert loaded.people[ADA]["signature"] == 5
    assert [place for _, place in opened] == ["", "/1"]
    assert len({entry for entry, _ in opened}) == 1
    opened.clear()
    assert list(loaded.people) == [ZOE, ADA, BOB]
    assert [place for _, place in opened] == [""] * 3
    assert list(loaded.people[ADA]) == ["key", "signature"]
    with pytest.raises(KeyError):
        loaded.people["nobody"]
    assert loaded.people.get("nobody") is None


def test_what_is_encrypted_is_the_same_bytes_and_what_is_written_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: list[list[bytes]] = []
    right = Secrets.seal

    def spy(self: Secrets, entry: str, place: str, plain: bytes) -> bytes:
        sealed[-1].append(plain)
        return right(self, entry, place, plain)

    monkeypatch.setattr(Secrets, "seal", spy)
    for name in "ab":
        sealed.append([])
        artefact = made(private=False)
        artefact.people = {ADA: {"key": torch.arange(3.0)}}
        artefact.save(tmp_path / name, "m", WEIGHTS, replace=False)
    assert sealed[0] == sealed[1]
    (one, other) = (load_file(tmp_path / name / "people.safetensors") for name in "ab")
    assert not set(one) & set(other)
    assert not {bytes(blob.tolist()) for blob in one.values()} & {bytes(blob.tolist()) for blob in other.values()}


def test_who_is_destroyed_is_gone_and_the_others_stay(folder: Path) -> None:
    loaded = saved(folder)
    assert loaded.destroy(ADA)
    for artefact in (loaded, Artefact.load(folder, "m", WEIGHTS)):
        assert list(artefact.people) == [ZOE, BOB]
        assert len(artefact.people) == 2
        assert ADA not in artefact.people
        with pytest.raises(OneshuiError, match=r"^What was prepared for this person has been used and destroyed\.$"):
            artefact.people[ADA]
        assert same(artefact.people[ZOE], made().people[ZOE])
        assert not artefact.destroy(ADA)
        assert not artefact.destroy("nobody")
    for person in (ZOE, BOB):
        assert loaded.destroy(person)
    assert not loaded.people
    assert list(loaded.people) == []


def test_one_in_memory_is_destroyed_likewise() -> None:
    artefact = made()
    assert artefact.destroy(ADA)
    assert list(artefact.people) == [ZOE, BOB]
    assert not artefact.destroy(ADA)


def test_preparing_again_destroys_the_secrets_of_what_is_replaced(folder: Path, vault: Path) -> None:
    old, copy = saved(folder), folder.with_name("copy")
    made().save(copy, "m", WEIGHTS, replace=False)
    made().save(folder, "m", WEIGHTS, replace=True)
    assert len(list(vault.iterdir())) == 2
    with pytest.raises(OneshuiError, match="The secrets of this artefact are not on this machine"):
        old.people[ADA]
    for place in (folder, copy):
        assert same(Artefact.load(place, "m", WEIGHTS).people[ADA], made().people[ADA])
    made(private=False).save(folder, "m", WEIGHTS, replace=True)
    assert len(list(vault.iterdir())) == 1


@pytest.mark.parametrize("look", [list, len, lambda people: ADA in people, lambda people: people[ADA], lambda people: people.get("nobody")])
def test_without_the_vault_the_rest_can_be_used(folder: Path, vault: Path, look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(folder)
    monkeypatch.setenv("ONESHUI_VAULT", str(vault.with_name("empty")))
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert torch.equal(loaded.tensors["half"], torch.ones(2).half())
    with pytest.raises(OneshuiError, match=r"not on this machine \(.*empty\); set ONESHUI_VAULT or prepare again\.$"):
        look(loaded.people)
    assert list(Artefact.load(folder, "m", WEIGHTS, vault=vault).people) == [ZOE, ADA, BOB]


def test_blobs_that_are_swapped_do_not_open(folder: Path) -> None:
    saved(folder)
    blobs = load_file(folder / "people.safetensors")
    index = json.loads((folder / "people.json").read_text())
    entries = list(index["index"].values())
    with_two = [entry for entry in entries if f"{entry}/1" in blobs]
    other = blobs[f"{with_two[1]}/1"]
    swapped = blobs | {f"{with_two[0]}/1": other.clone(), f"{with_two[1]}/0": other.clone()}
    save_file(swapped, folder / "people.safetensors")
    loaded = Artefact.load(folder, "m", WEIGHTS).people
    damaged = 0
    for person, name in ((ADA, "key"), (ADA, "signature"), (ZOE, "key"), (ZOE, "signature")):
        try:
            assert torch.equal(loaded[person][name], made().people[person][name])
        except OneshuiError as error:
            assert "does not open with its secret" in str(error)
            damaged += 1
    assert damaged == 2
    # An index that leads to somebody else is found out, too.
    turned = dict(zip(index["index"], [*entries[1:], entries[0]], strict=True))
    (folder / "people.json").write_text(json.dumps(index | {"index": turned}))
    with pytest.raises(OneshuiError, match=r"people.json leads to somebody else"):
        Artefact.load(folder, "m", WEIGHTS).people[ADA]
    # And so is a blob that was taken out.
    (folder / "people.json").write_text(json.dumps(index))
    save_file({name: blob for name, blob in blobs.items() if "/" in name}, folder / "people.safetensors")
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(.*\); prepare again"):
        Artefact.load(folder, "m", WEIGHTS).people[ADA]


@pytest.mark.parametrize(
    "change",
    [{"artefact": "../../../somewhere"}, {"index": {"0" * 64: "../x"}}, {"index": {"Ada": "0" * 32}}, {"index": []}, {"format": 2}],
)
def test_an_index_from_elsewhere_leads_nowhere(folder: Path, vault: Path, change: dict[str, Any]) -> None:
    saved(folder)
    before = sorted(vault.rglob("*"))
    file = folder / "people.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(people.json is no index of people\); prepare again"):
        Artefact.load(folder, "m", WEIGHTS)
    made(private=False).save(folder, "m", WEIGHTS, replace=True)
    assert sorted(vault.rglob("*")) == before


def test_what_an_earlier_version_left_in_the_clear_is_not_read_on(folder: Path) -> None:
    made(private=False).save(folder, "m", WEIGHTS, replace=False)
    (folder / "private.json").write_text("{}")
    with pytest.raises(OneshuiError, match="did not encrypt what concerns people; prepare again with --overwrite"):
        Artefact.load(folder, "m", WEIGHTS)
    made().save(folder, "m", WEIGHTS, replace=True)
    assert ADA in Artefact.load(folder, "m", WEIGHTS).people


def test_two_hundred_people_are_listed_fast_and_without_their_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = torch.randn(25_000)  # 100 kB
    loaded = saved(folder, {f"person {n}": {"key": key, "signature": torch.full((512,), float(n))} for n in range(200)})
    seconds = []
    for _ in range(3):
        started = time.process_time()
        signatures = torch.stack([loaded.people[person]["signature"] for person in loaded.people])
        seconds.append(time.process_time() - started)
    assert signatures[:, 0].tolist() == list(range(200))
    assert min(seconds) < 0.5  # 0.05 on a machine that has nothing else to do
    right, read = People.read, []
    monkeypatch.setattr(module.People, "read", lambda self, entry, name: (read.append(name), right(self, entry, name))[1])
    list(loaded.people)
    assert set(read) == {""}
