"""Artefacts on disk: bound to a method and a model, intact or refused, with per-identity data encrypted in separate files."""

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
from oneshui_hf.methods.artefact import Artefact
from oneshui_hf.methods.identity_store import IdentityStore
from oneshui_hf.vault import Secrets, vault_root
from support.changed_artefacts import rewrite_as_format_1
from support.tensors import equal

WEIGHTS = "a" * 64
ADA, BOB, ZOE = "Ada Lovelace", "Bob", "Zoë"


@pytest.fixture(autouse=True)
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONESHUI_VAULT", str(tmp_path / "vault"))
    return vault_root()


def make_artefact(people: bool = True) -> Artefact:
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
    if people:
        artefact.people = {
            ZOE: {"key": table[1] + 0.123, "signature": torch.ones(2).half()},
            ADA: {"key": table[2] + 0.123, "signature": torch.tensor(5)},
            BOB: {},
        }
    return artefact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run/methods/m"


@pytest.mark.parametrize("people", [False, True])
def test_saved_and_loaded_artefact_is_equal(folder: Path, people: bool) -> None:
    artefact = make_artefact(people)
    artefact.save(folder, "m", WEIGHTS, replace=False)
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert equal(loaded.tensors, artefact.tensors)
    assert list(loaded.people) == list(artefact.people)
    assert len(loaded.people) == len(artefact.people)
    assert all(equal(loaded.people[person], tensors) for person, tensors in artefact.people.items())
    for name in ("values", "options", "report"):
        assert getattr(loaded, name) == getattr(artefact, name)


def test_empty_artefact_is_saved_and_loaded(folder: Path) -> None:
    Artefact().save(folder, "m", WEIGHTS, replace=False)
    assert Artefact.load(folder, "m", WEIGHTS) == Artefact()


def test_per_identity_data_is_in_separate_files_and_neither_they_nor_the_vault_reveal_it(folder: Path, vault: Path) -> None:
    artefact = make_artefact()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(files) == {"artefact.json", "artefact.safetensors", "people.json", "people.safetensors"}
    with safe_open(folder / "people.safetensors", "pt") as blobs:
        assert len(blobs.keys()) == 3 + 4
        header_sizes = {len(blobs.get_tensor(name)) for name in blobs.keys() if "/" not in name}  # noqa: SIM118
    assert header_sizes == {12 + 256 + 16}  # independent of the length of the name
    kept = [file.read_bytes() for file in vault.rglob("*") if file.is_file()]
    names = [str(path).encode() for path in (*folder.rglob("*"), *vault.rglob("*"))]
    assert len(kept) == 1 + 3 + 1  # the artefact's own secret, those of the people, the HMAC of the folder
    plain = artefact.people[ADA]["key"].numpy().tobytes()
    for data in (*files.values(), *kept, *names):
        for word in ("Lovelace", "Bob", "signature"):
            assert word.encode() not in data
        assert plain not in data
    for secret in kept:
        assert not any(secret in data or secret.hex().encode() in data for data in files.values())


def test_only_the_rows_of_a_view_are_save_and_load(folder: Path) -> None:
    table = torch.arange(12.0).view(4, 3)
    Artefact(tensors={"unknown": table[:1]}).save(folder, "m", WEIGHTS, replace=False)
    data = (folder / "artefact.safetensors").read_bytes()
    assert table[0].numpy().tobytes() in data
    assert table[1].numpy().tobytes() not in data


def test_artefact_without_per_identity_data_has_no_such_files_and_no_secrets(folder: Path, vault: Path) -> None:
    make_artefact(people=False).save(folder, "m", WEIGHTS, replace=False)
    assert not vault.exists()
    assert {file.name for file in folder.iterdir()} == {"artefact.json", "artefact.safetensors"}


def test_artefact_loads_without_the_files_of_per_identity_data(folder: Path) -> None:
    artefact = make_artefact()
    artefact.save(folder, "m", WEIGHTS, replace=False)
    for file in folder.glob("people.*"):
        file.unlink()
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert equal(loaded.tensors, artefact.tensors)
    assert loaded.people == {}


def test_artefact_of_another_model_is_refused_unless_forced(folder: Path) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    with pytest.raises(OneshuiError, match=r"other weights \(aaaaaaaaaaaa, not bbbbbbbbbbbb\); prepare again, or use --force"):
        Artefact.load(folder, "m", "b" * 64)
    assert Artefact.load(folder, "m", "b" * 64, force=True).values == {"length": 1e-3}


@pytest.mark.parametrize("force", [False, True])
def test_artefact_of_another_method_is_always_refused(folder: Path, force: bool) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    with pytest.raises(OneshuiError, match="is not an artefact of method 'other' that this version reads"):
        Artefact.load(folder, "other", WEIGHTS, force=force)


def test_artefact_of_another_format_is_refused(folder: Path) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    header = json.loads((folder / "artefact.json").read_text())
    (folder / "artefact.json").write_text(json.dumps(header | {"format": 2}))
    with pytest.raises(OneshuiError, match="that this version reads"):
        Artefact.load(folder, "m", WEIGHTS)


def test_error_of_a_missing_artefact_names_the_run_and_the_command(folder: Path) -> None:
    with pytest.raises(UsageError, match="Method 'm' has not been prepared for .*run; run `oneshui prepare` first"):
        Artefact.load(folder, "m", WEIGHTS)


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors", "people.json", "people.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x00" * 40])
def test_damaged_file_gives_a_one_line_error(folder: Path, file: str, content: bytes) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    (folder / file).write_bytes(content)
    with pytest.raises(OneshuiError) as raised:
        Artefact.load(folder, "m", WEIGHTS)
    assert "methods/m" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", ["artefact.json", "artefact.safetensors", "people.json", "people.safetensors"])
def test_missing_file_gives_a_one_line_error(folder: Path, file: str) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    (folder / file).unlink()
    with pytest.raises(OneshuiError, match=f"methods/m.*({file} is missing|is damaged)"):
        Artefact.load(folder, "m", WEIGHTS)


def test_truncated_file_is_refused(folder: Path) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    file = folder / "artefact.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OneshuiError, match=r"methods/m has changed since it was prepared \(artefact.safetensors does not match"):
        Artefact.load(folder, "m", WEIGHTS)


def test_header_without_a_required_field_is_refused(folder: Path) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    header = json.loads((folder / "artefact.json").read_text())
    for name in ("weights", "values", "options", "report"):
        (folder / "artefact.json").write_text(json.dumps({k: v for k, v in header.items() if k != name}))
        with pytest.raises(OneshuiError, match="methods/m"):
            Artefact.load(folder, "m", WEIGHTS)


def test_preparing_again_replaces_the_whole_folder(folder: Path) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    make_artefact(people=False).save(folder, "m", WEIGHTS, replace=True)
    assert {file.name for file in folder.iterdir()} == {"artefact.json", "artefact.safetensors"}


def test_failed_write_keeps_the_old_artefact(folder: Path, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_artefact().save(folder, "m", WEIGHTS, replace=False)
    secrets = sorted(vault.rglob("*"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        make_artefact().save(folder, "m", "b" * 64, replace=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    assert sorted(vault.rglob("*")) == secrets


def test_saving_does_not_change_the_tensors(folder: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    artefact = Artefact(tensors={"w": weight})
    artefact.save(folder, "m", WEIGHTS, replace=False)
    assert artefact.tensors["w"] is weight
    assert not Artefact.load(folder, "m", WEIGHTS).tensors["w"].requires_grad


# Per-identity data


def save_and_load(folder: Path, people: Mapping[str, Mapping[str, torch.Tensor]] | None = None) -> Artefact:
    artefact = make_artefact()
    artefact.people = artefact.people if people is None else people
    artefact.save(folder, "m", WEIGHTS, replace=False)
    return Artefact.load(folder, "m", WEIGHTS)


def test_access_to_a_tensor_decrypts_only_that_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, decrypted = save_and_load(folder), []
    decrypt = Secrets.decrypt

    def spy(self: Secrets, entry: str, name: str, blob: bytes, weights: str | None) -> bytes:
        decrypted.append((entry, name))
        return decrypt(self, entry, name, blob, weights)

    monkeypatch.setattr(Secrets, "decrypt", spy)
    assert ADA in loaded.people
    assert "Ada" not in loaded.people
    assert len(loaded.people) == 3
    assert decrypted == []
    assert loaded.people[ADA]["signature"] == 5
    assert [name for _, name in decrypted] == ["", "/1"]
    assert len({entry for entry, _ in decrypted}) == 1
    decrypted.clear()
    assert list(loaded.people) == [ZOE, ADA, BOB]
    assert [name for _, name in decrypted] == [""] * 3
    assert list(loaded.people[ADA]) == ["key", "signature"]
    with pytest.raises(KeyError):
        loaded.people["nobody"]
    assert loaded.people.get("nobody") is None


def test_plain_bytes_are_reproducible_and_written_bytes_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_bytes: list[list[bytes]] = []
    encrypt = Secrets.encrypt

    def spy(self: Secrets, entry: str, name: str, plain: bytes, weights: str) -> bytes:
        plain_bytes[-1].append(plain)
        return encrypt(self, entry, name, plain, weights)

    monkeypatch.setattr(Secrets, "encrypt", spy)
    for name in "ab":
        plain_bytes.append([])
        artefact = make_artefact(people=False)
        artefact.people = {ADA: {"key": torch.arange(3.0)}}
        artefact.save(tmp_path / name, "m", WEIGHTS, replace=False)
    assert plain_bytes[0] == plain_bytes[1]
    first, second = (load_file(tmp_path / name / "people.safetensors") for name in "ab")
    assert not set(first) & set(second)
    assert not {bytes(blob.tolist()) for blob in first.values()} & {bytes(blob.tolist()) for blob in second.values()}


def test_destroyed_identity_is_missing_and_the_others_remain(folder: Path) -> None:
    loaded = save_and_load(folder)
    assert loaded.destroy(ADA)
    for artefact in (loaded, Artefact.load(folder, "m", WEIGHTS)):
        assert list(artefact.people) == [ZOE, BOB]
        assert len(artefact.people) == 2
        assert ADA not in artefact.people
        with pytest.raises(OneshuiError, match=r"^The data prepared for this identity has been used and destroyed\.$"):
            artefact.people[ADA]
        assert equal(artefact.people[ZOE], make_artefact().people[ZOE])
        assert not artefact.destroy(ADA)
        assert not artefact.destroy("nobody")
    for person in (ZOE, BOB):
        assert loaded.destroy(person)
    assert not loaded.people
    assert list(loaded.people) == []


def test_identity_of_an_artefact_in_memory_is_destroyed() -> None:
    artefact = make_artefact()
    assert artefact.destroy(ADA)
    assert list(artefact.people) == [ZOE, BOB]
    assert not artefact.destroy(ADA)


def test_preparing_again_destroys_the_secrets_of_the_replaced_artefact(folder: Path, vault: Path) -> None:
    old, copy = save_and_load(folder), folder.with_name("copy")
    make_artefact().save(copy, "m", WEIGHTS, replace=False)
    make_artefact().save(folder, "m", WEIGHTS, replace=True)
    assert len(list(vault.iterdir())) == 2
    with pytest.raises(OneshuiError, match="The secrets of this artefact are not on this machine"):
        old.people[ADA]
    for place in (folder, copy):
        assert equal(Artefact.load(place, "m", WEIGHTS).people[ADA], make_artefact().people[ADA])
    make_artefact(people=False).save(folder, "m", WEIGHTS, replace=True)
    assert len(list(vault.iterdir())) == 1


@pytest.mark.parametrize(
    "access", [list, len, lambda people: ADA in people, lambda people: people[ADA], lambda people: people.get("nobody")]
)
def test_artefact_without_its_vault_is_usable_except_for_per_identity_data(
    folder: Path, vault: Path, access: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_and_load(folder)
    monkeypatch.setenv("ONESHUI_VAULT", str(vault.with_name("empty")))
    loaded = Artefact.load(folder, "m", WEIGHTS)
    assert torch.equal(loaded.tensors["half"], torch.ones(2).half())
    with pytest.raises(OneshuiError, match=r"not on this machine \(.*empty\); set ONESHUI_VAULT or prepare again\.$"):
        access(loaded.people)
    assert list(Artefact.load(folder, "m", WEIGHTS, vault=vault).people) == [ZOE, ADA, BOB]


@pytest.mark.parametrize("form", [1, 2])
def test_swapped_blobs_cannot_be_decrypted(folder: Path, vault: Path, form: int) -> None:
    save_and_load(folder)
    if form == 1:
        rewrite_as_format_1(folder, vault)
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
            assert torch.equal(loaded[person][name], make_artefact().people[person][name])
        except OneshuiError as error:
            assert "cannot be decrypted" in str(error)
            damaged += 1
    assert damaged == 2
    # An index that points to another identity is detected.
    rotated = dict(zip(index["index"], [*entries[1:], entries[0]], strict=True))
    (folder / "people.json").write_text(json.dumps(index | {"index": rotated}))
    with pytest.raises(OneshuiError, match=r"people.json points to another identity" if form == 1 else "its seal does not match"):
        Artefact.load(folder, "m", WEIGHTS).people[ADA]
    # A missing blob is detected.
    (folder / "people.json").write_text(json.dumps(index))
    save_file({name: blob for name, blob in blobs.items() if "/" in name}, folder / "people.safetensors")
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(.*\); prepare again"):
        Artefact.load(folder, "m", WEIGHTS).people[ADA]


@pytest.mark.parametrize(
    "change",
    [{"artefact": "../../../somewhere"}, {"index": {"0" * 64: "../x"}}, {"index": {"Ada": "0" * 32}}, {"index": []}, {"format": 3}],
)
def test_invalid_index_is_refused_and_its_paths_are_not_followed(folder: Path, vault: Path, change: dict[str, Any]) -> None:
    save_and_load(folder)
    before = sorted(vault.rglob("*"))
    file = folder / "people.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(OneshuiError, match=r"methods/m is damaged \(people.json is not an index of identities\); prepare again"):
        Artefact.load(folder, "m", WEIGHTS)
    make_artefact(people=False).save(folder, "m", WEIGHTS, replace=True)
    assert sorted(vault.rglob("*")) == before


def test_unencrypted_artefact_of_an_earlier_version_is_refused(folder: Path) -> None:
    make_artefact(people=False).save(folder, "m", WEIGHTS, replace=False)
    (folder / "private.json").write_text("{}")
    with pytest.raises(OneshuiError, match="did not encrypt per-identity data; prepare again with --overwrite"):
        Artefact.load(folder, "m", WEIGHTS)
    make_artefact().save(folder, "m", WEIGHTS, replace=True)
    assert ADA in Artefact.load(folder, "m", WEIGHTS).people


def test_listing_two_hundred_identities_is_fast_and_decrypts_only_headers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = torch.randn(25_000)  # 100 kB
    loaded = save_and_load(folder, {f"person {n}": {"key": key, "signature": torch.full((512,), float(n))} for n in range(200)})
    seconds = []
    for _ in range(3):
        started = time.process_time()
        signatures = torch.stack([loaded.people[person]["signature"] for person in loaded.people])
        seconds.append(time.process_time() - started)
    assert signatures[:, 0].tolist() == list(range(200))
    assert min(seconds) < 0.5  # 0.05 on an idle machine
    original_read, read = IdentityStore.read, []
    monkeypatch.setattr(IdentityStore, "read", lambda self, entry, name: (read.append(name), original_read(self, entry, name))[1])
    list(loaded.people)
    assert set(read) == {""}
