"""The vault: location and permissions of secrets, encryption with them, and that destroyed secrets decrypt nothing."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from oneshui_hf import vault as module
from oneshui_hf.errors import OneshuiError
from oneshui_hf.vault import Secrets, draw_secrets, fingerprint, is_id, new_id, seal, vault_root

ONE, OTHER = "1" * 32, "2" * 32
WEIGHTS, FOLDER = "f" * 64, Path("methods/keys")


@pytest.fixture
def secrets(tmp_path: Path) -> Secrets:
    created = Secrets(tmp_path / "vault", "a" * 32)
    created.create(draw_secrets([ONE, OTHER]), FOLDER)
    return created


def test_vault_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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


def test_only_the_owner_can_read_and_every_secret_is_unique(secrets: Secrets) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    files = sorted(secrets.folder.iterdir())
    assert [file.name for file in files] == [f"{ONE}.key", f"{OTHER}.key", "artefact.key", "folder.hmac"]
    assert mode(secrets.root) == mode(secrets.folder) == 0o700
    assert {mode(file) for file in files} == {0o600}
    assert {len(file.read_bytes()) for file in files} == {32}
    again = Secrets(secrets.root, "b" * 32)
    again.create(draw_secrets([ONE, OTHER]), FOLDER)
    assert len({file.read_bytes() for file in secrets.root.rglob("*.key")}) == 6
    assert len(secrets) == len(again) == 2
    assert len(Secrets(secrets.root, "c" * 32)) == 0


def test_encryption_is_aes_gcm_with_the_file_as_key(secrets: Secrets) -> None:
    blob = secrets.encrypt(ONE, "/0", b"plain", WEIGHTS)
    key = (secrets.folder / f"{ONE}.key").read_bytes()
    assert AESGCM(key).decrypt(blob[:12], blob[12:], f"{'a' * 32}/{ONE}//0/{WEIGHTS}".encode()) == b"plain"
    assert len(blob) == 12 + 5 + 16
    assert secrets.encrypt(ONE, "/0", b"plain", WEIGHTS)[:12] != blob[:12]
    assert secrets.decrypt(ONE, "/0", blob, WEIGHTS) == b"plain"


def test_a_blob_decrypts_only_for_its_artefact_entry_tensor_and_model(secrets: Secrets) -> None:
    blob = secrets.encrypt(ONE, "/0", b"plain", WEIGHTS)
    for entry, tensor in ((OTHER, "/0"), (ONE, "/1"), (ONE, "")):
        with pytest.raises(OneshuiError, match="is damaged: it cannot be decrypted"):
            secrets.decrypt(entry, tensor, blob, WEIGHTS)
    for weights in ("e" * 64, None):  # None: the format of earlier versions
        with pytest.raises(OneshuiError, match="cannot be decrypted"):
            secrets.decrypt(ONE, "/0", blob, weights)
    moved = Secrets(secrets.root, "b" * 32)
    secrets.folder.rename(moved.folder)  # the same secret under another artefact's id
    with pytest.raises(OneshuiError, match="cannot be decrypted"):
        moved.decrypt(ONE, "/0", blob, WEIGHTS)


@pytest.mark.parametrize("corrupt", [lambda b: b"", lambda b: b[:11], lambda b: b[:-1], lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:]])
def test_a_damaged_blob_is_reported_in_one_sentence(secrets: Secrets, corrupt: object) -> None:
    blob = secrets.encrypt(ONE, "", b"some bytes that are long", WEIGHTS)
    with pytest.raises(OneshuiError, match=r"^The data prepared for this identity is damaged[^\n]*\.$"):
        secrets.decrypt(ONE, "", corrupt(blob), WEIGHTS)  # type: ignore[operator]


def test_a_fingerprint_is_the_hmac_of_a_name(secrets: Secrets) -> None:
    key = (secrets.folder / "artefact.key").read_bytes()
    assert secrets.fingerprint("Zoë") == hmac.new(key, "Zoë".encode(), hashlib.sha256).hexdigest()
    assert secrets.fingerprint("Zoe") != secrets.fingerprint("Zoë")
    assert secrets.fingerprint("\udcfftext") == hmac.new(key, b"\xed\xb3\xbftext", hashlib.sha256).hexdigest()  # from a file name


def test_a_blob_of_an_earlier_version_decrypts_without_the_weights(secrets: Secrets) -> None:
    key = (secrets.folder / f"{ONE}.key").read_bytes()
    blob = b"n" * 12 + AESGCM(key).encrypt(b"n" * 12, b"plain", f"{'a' * 32}/{ONE}//0".encode())
    assert secrets.decrypt(ONE, "/0", blob, None) == b"plain"
    with pytest.raises(OneshuiError, match="cannot be decrypted"):
        secrets.decrypt(ONE, "/0", blob, WEIGHTS)


def test_a_seal_depends_on_the_secret_and_the_message_and_is_never_a_fingerprint(secrets: Secrets) -> None:
    key = (secrets.folder / "artefact.key").read_bytes()
    assert secrets.seal(b"text") == seal(key, b"text") == hmac.new(key, b"\xfftext", hashlib.sha256).hexdigest()
    assert secrets.has_sealed(b"text", seal(key, b"text"))
    for value in (fingerprint(key, "text"), seal(b"k" * 32, b"text"), seal(key, b"other"), "ä", "", None, 7):
        assert not secrets.has_sealed(b"text", value)


@pytest.mark.parametrize("content", [b"", b"short", b"l" * 100])
def test_a_secret_of_wrong_size_is_overwritten_in_full(secrets: Secrets, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    file, written = secrets.folder / f"{ONE}.key", []
    file.write_bytes(content)
    file.chmod(0o400)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (written.append(self.read_bytes()), os.unlink(self)))  # noqa: PTH108
    assert secrets.destroy(ONE)
    assert len(written[0]) == max(32, len(content))
    assert content == b"" or content[:5] not in written[0]


def test_the_deletion_of_a_secret_is_on_the_disk(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr(module, "sync_folder", lambda folder: synced.append(sorted(file.name for file in folder.iterdir())))
    secrets.destroy(ONE)
    assert synced == [[f"{OTHER}.key", "artefact.key", "folder.hmac"]]


def test_a_destroyed_secret_is_overwritten_and_deleted(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, file = secrets.encrypt(ONE, "", b"plain", WEIGHTS), secrets.folder / f"{ONE}.key"
    before, deleted = file.read_bytes(), []
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: (deleted.append(self.read_bytes()), os.unlink(self)))  # noqa: PTH108
    assert secrets.has_secret(ONE)
    assert secrets.destroy(ONE)
    assert len(deleted) == 1
    assert len(deleted[0]) == 32
    assert deleted[0] != before
    assert not file.exists()
    assert not secrets.has_secret(ONE)
    assert secrets.has_secret(OTHER)
    assert len(secrets) == 1
    for call in (lambda: secrets.decrypt(ONE, "", blob, WEIGHTS), lambda: secrets.encrypt(ONE, "", b"", WEIGHTS)):
        with pytest.raises(OneshuiError, match=r"^The data prepared for this identity has been used and destroyed\.$"):
            call()
    assert not secrets.destroy(ONE)


def test_a_missing_vault_is_reported_in_one_sentence(secrets: Secrets) -> None:
    away = Secrets(secrets.root / "elsewhere", secrets.artefact)
    for call in (lambda: away.decrypt(ONE, "", b"", WEIGHTS), lambda: away.fingerprint("a"), away.require):
        with pytest.raises(
            OneshuiError, match=r"^The secrets of this artefact are not on this machine \(.*elsewhere\); set ONESHUI_VAULT or"
        ):
            call()
    (secrets.folder / f"{ONE}.key").write_bytes(b"short")
    with pytest.raises(OneshuiError, match=r"is damaged: it contains 5 bytes, not 32; prepare again\.$"):
        secrets.decrypt(ONE, "", b"", WEIGHTS)


def test_destroy_all_affects_one_artefact_only(secrets: Secrets) -> None:
    other = Secrets(secrets.root, "b" * 32)
    other.create(draw_secrets([ONE]), FOLDER)
    secrets.destroy(OTHER)
    assert secrets.destroy_all() == 1
    assert [path.name for path in secrets.root.iterdir()] == ["b" * 32]
    assert other.has_secret(ONE)
    assert secrets.destroy_all() == 0


def test_a_secret_that_cannot_be_destroyed_is_reported(secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OneshuiError, match=rf"^The secret .*{ONE}\.key could not be destroyed and remains \(Permission denied\); delete"):
        secrets.destroy(ONE)


def test_secrets_are_written_all_or_none(tmp_path: Path) -> None:
    secrets = Secrets(tmp_path / "vault", "a" * 32)
    with pytest.raises(FileNotFoundError):
        secrets.create(draw_secrets([ONE, "no/name"]), FOLDER)
    assert list(secrets.root.iterdir()) == []


def test_ids_are_random_and_are_never_a_path() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
    assert is_id(new_id())
    for value in ("../../.ssh/id", "a" * 31, "A" * 32, "a" * 32 + "\n", None, 7):
        assert not is_id(value)


def test_secrets_belong_to_the_folder_that_the_artefact_was_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    created = Secrets(tmp_path / "vault", "b" * 32)
    created.create(draw_secrets([ONE]), tmp_path / "link/keys")
    assert created.belong_to(tmp_path / "run/keys")
    monkeypatch.chdir(tmp_path / "run")
    assert created.belong_to(Path("keys"))
    assert not created.belong_to(tmp_path / "run/copy")
    assert not Secrets(tmp_path / "vault", "c" * 32).belong_to(tmp_path / "run/keys")
    assert str(tmp_path).encode() not in (created.folder / "folder.hmac").read_bytes()
    assert created.destroy_all() == 1
    assert not created.folder.exists()
