"""Secrets: where they lie and who may read them, what they seal, and that what was destroyed stays closed."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oneshui_hf.errors import OneshuiError
from oneshui_hf.vault import Secrets, is_id, new_id, vault_root

ONE, OTHER = "1" * 32, "2" * 32


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    made = Secrets(tmp_path / "vault", "a" * 32)
    made.create([ONE, OTHER])
    return made


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ONESHUI_VAULT", "~/own")
    assert vault_root() == tmp_path / "own"
    monkeypatch.setenv("ONESHUI_VAULT", "")
    assert vault_root() == tmp_path / "xdg" / "oneshui" / "vault"
    monkeypatch.delenv("XDG_DATA_HOME")
    for platform, data in {"linux": ".local/share", "darwin": "Library/Application Support", "win32": "AppData/Local"}.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert vault_root() == tmp_path / data / "oneshui" / "vault"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert vault_root() == tmp_path / "local" / "oneshui" / "vault"


def test_nobody_else_may_read_and_every_secret_is_another(secrets: Secrets) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    files = sorted(secrets.folder.iterdir())
    assert [file.name for file in files] == [f"{ONE}.key", f"{OTHER}.key", "artefact.key"]
    assert mode(secrets.root) == mode(secrets.folder) == 0o700
    assert {mode(file) for file in files} == {0o600}
    assert {len(file.read_bytes()) for file in files} == {32}
    again = Secrets(secrets.root, "b" * 32)
    again.create([ONE, OTHER])
    assert len({file.read_bytes() for file in secrets.root.rglob("*.key")}) == 6
    assert len(secrets) == len(again) == 2
    assert len(Secrets(secrets.root, "c" * 32)) == 0


def test_what_is_sealed_is_aes_gcm_under_the_file(secrets: Secrets) -> None:
    sealed = secrets.seal(ONE, "/0", b"plain")
    key = (secrets.folder / f"{ONE}.key").read_bytes()
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], f"{'a' * 32}/{ONE}//0".encode()) == b"plain"
    assert len(sealed) == 12 + 5 + 16
    assert secrets.seal(ONE, "/0", b"plain")[:12] != sealed[:12]
    assert secrets.open(ONE, "/0", sealed) == b"plain"


def test_a_blob_opens_in_its_place_alone(secrets: Secrets) -> None:
    sealed = secrets.seal(ONE, "/0", b"plain")
    for entry, place in ((OTHER, "/0"), (ONE, "/1"), (ONE, "")):
        with pytest.raises(OneshuiError, match="is damaged: it does not open with its secret"):
            secrets.open(entry, place, sealed)
    moved = Secrets(secrets.root, "b" * 32)
    secrets.folder.rename(moved.folder)  # the same secret under another artefact's name
    with pytest.raises(OneshuiError, match="does not open"):
        moved.open(ONE, "/0", sealed)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:11], lambda b: b[:-1], lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:]])
def test_a_damaged_blob_is_one_sentence(secrets: Secrets, damage: object) -> None:
    sealed = secrets.seal(ONE, "", b"some bytes that are long")
    with pytest.raises(OneshuiError, match=r"^What was prepared for this person is damaged[^\n]*\.$"):
        secrets.open(ONE, "", damage(sealed))  # type: ignore[operator]


def test_a_fingerprint_is_the_hmac_of_a_name(secrets: Secrets) -> None:
    key = (secrets.folder / "artefact.key").read_bytes()
    assert secrets.fingerprint("Zoë") == hmac.new(key, "Zoë".encode(), hashlib.sha256).hexdigest()
    assert secrets.fingerprint("Zoe") != secrets.fingerprint("Zoë")


def test_what_is_destroyed_is_overwritten_removed_and_closed(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, file = secrets.seal(ONE, "", b"plain"), secrets.folder / f"{ONE}.key"
    before, seen = file.read_bytes(), []
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (seen.append(self.read_bytes()), os.unlink(self)))  # noqa: PTH108
    assert secrets.holds(ONE)
    assert secrets.destroy(ONE)
    assert len(seen) == 1
    assert len(seen[0]) == 32
    assert seen[0] != before
    assert not file.exists()
    assert not secrets.holds(ONE)
    assert secrets.holds(OTHER)
    assert len(secrets) == 1
    for call in (lambda: secrets.open(ONE, "", sealed), lambda: secrets.seal(ONE, "", b"")):
        with pytest.raises(OneshuiError, match=r"^What was prepared for this person has been used and destroyed\.$"):
            call()
    assert not secrets.destroy(ONE)


def test_a_missing_vault_is_one_sentence(secrets: Secrets) -> None:
    away = Secrets(secrets.root / "elsewhere", secrets.artefact)
    for call in (lambda: away.open(ONE, "", b""), lambda: away.fingerprint("a"), away.require):
        with pytest.raises(
            OneshuiError, match=r"^The secrets of this artefact are not on this machine \(.*elsewhere\); set ONESHUI_VAULT or"
        ):
            call()
    (secrets.folder / f"{ONE}.key").write_bytes(b"short")
    with pytest.raises(OneshuiError, match=r"is damaged: it holds 5 bytes, not 32; prepare again\.$"):
        secrets.open(ONE, "", b"")


def test_all_of_an_artefact_go_together_and_no_others(secrets: Secrets) -> None:
    other = Secrets(secrets.root, "b" * 32)
    other.create([ONE])
    secrets.destroy(OTHER)
    assert secrets.destroy_all() == 1
    assert [path.name for path in secrets.root.iterdir()] == ["b" * 32]
    assert other.holds(ONE)
    assert secrets.destroy_all() == 0


def test_what_cannot_be_destroyed_is_told(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OneshuiError, match=rf"^The secret .*{ONE}\.key could not be destroyed and remains \(Permission denied\); remove"):
        secrets.destroy(ONE)


def test_secrets_appear_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Secrets(tmp_path / "vault", "a" * 32)
    with pytest.raises(FileExistsError):
        made.create([ONE, ONE])
    assert list(made.root.iterdir()) == []


def test_ids_are_random_and_never_a_path() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
    assert is_id(new_id())
    for value in ("../../.ssh/id", "a" * 31, "A" * 32, "a" * 32 + "\n", None, 7):
        assert not is_id(value)
