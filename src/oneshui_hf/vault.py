"""Secrets: what opens the encrypted data of single people, kept away from the runs that hold the data.

VAULT/
  <artefact>/           a folder an artefact, 0700, under the random id that the artefact knows itself by
    artefact.key        the artefact's own secret, by which it finds a person's entry without holding a name
    <entry>.key         a person's secret, 0600; once it is destroyed, nobody reads what it opened

Every file holds 32 random bytes and nothing else, so a vault alone tells of nobody. It is not encrypted itself: who may read the vault and
the run may read the people.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import OneshuiError
from .runs import new_folder

SECRET, NONCE = 32, 12  # bytes: a key of AES-256 and of HMAC-SHA256, and the nonce that GCM asks for
OWN, END = "artefact", ".key"
ID = re.compile(r"[0-9a-f]{32}")


def vault_root() -> Path:
    """Return where secrets are kept: $ONESHUI_VAULT, else a folder among the user's data, where the platform has that."""
    if named := os.environ.get("ONESHUI_VAULT"):
        return Path(named).expanduser()
    data = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME")
    usual = {"win32": "AppData/Local", "darwin": "Library/Application Support"}.get(sys.platform, ".local/share")
    return (Path(data) if data else Path.home() / usual) / "oneshui" / "vault"


def new_id() -> str:
    """Return the name of an artefact or an entry: 128 random bits."""
    return secrets.token_hex(16)


def is_id(value: object) -> bool:
    """Whether a value is such a name. A name is part of a path, and it may come from somebody else's file."""
    return isinstance(value, str) and ID.fullmatch(value) is not None


@dataclass(frozen=True)
class Secrets:
    """The secrets of one artefact.

    Attributes:
        root: The vault.
        artefact: The artefact's id.
    """

    root: Path
    artefact: str

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.root / self.artefact

    def create(self, entries: Iterable[str]) -> None:
        """Draw the artefact's own secret and one for each entry. They appear all at once or not at all.

        The draws are the system's: from a seed, anybody could draw them again.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with new_folder(self.folder) as scratch:
            scratch.chmod(0o700)
            for name in (OWN, *entries):
                handle = os.open(scratch / f"{name}{END}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(secrets.token_bytes(SECRET))

    def require(self) -> None:
        """Check that the artefact's secrets are here, be some of them destroyed.

        Raises:
            OneshuiError: They are not.
        """
        if not self._file(OWN).exists():
            raise OneshuiError(f"The secrets of this artefact are not on this machine ({self.root}); set ONESHUI_VAULT or prepare again.")

    def holds(self, entry: str) -> bool:
        """Whether the secret of an entry is still there."""
        return self._file(entry).exists()

    def __len__(self) -> int:
        """How many entries have theirs."""
        return sum(1 for file in self.folder.glob(f"*{END}") if file != self._file(OWN))

    def fingerprint(self, identity: str) -> str:
        """Return the HMAC-SHA256 of an identity under the artefact's own secret: the same for the same person, a name to nobody else.

        Raises:
            OneshuiError: The artefact's secrets are not here.
        """
        return hmac.digest(self._secret(OWN), identity.encode(), "sha256").hex()

    def seal(self, entry: str, place: str, plain: bytes) -> bytes:
        """Encrypt with AES-256-GCM: nonce, ciphertext and tag in one.

        The nonce is random, so the same plaintext gives other bytes each time.

        Args:
            entry: Whose secret.
            place: What else the blob is bound to; it opens under the same artefact, entry and place alone, so blobs cannot be swapped.
            plain: What to encrypt.

        Raises:
            OneshuiError: The secret is not here, or destroyed.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(NONCE)
        return nonce + AESGCM(self._secret(entry)).encrypt(nonce, plain, self._bound(entry, place))

    def open(self, entry: str, place: str, sealed: bytes) -> bytes:
        """Decrypt what `seal` returned.

        Raises:
            OneshuiError: The secret is not here, or destroyed; or the blob is damaged, or another one's.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = self._secret(entry)
        try:
            return AESGCM(secret).decrypt(sealed[:NONCE], sealed[NONCE:], self._bound(entry, place))
        except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
            raise OneshuiError("What was prepared for this person is damaged: it does not open with its secret; prepare again.") from None

    def destroy(self, entry: str) -> bool:
        """Overwrite the secret of an entry and remove its file; return whether it was there.

        What is sealed with it stays where it is, and is noise from then on. The overwriting reaches the disk before the file goes. It
        cannot promise that no copy is left: flash memory writes to other cells than it read from, journaling and copy-on-write file systems
        and their snapshots may keep the old block, and a backup keeps what it took. Where that matters, keep the vault on an
        encrypted disk and out of backups.

        Raises:
            OneshuiError: It could not be destroyed; the sentence tells which file remains.
        """
        file = self._file(entry)
        try:
            with file.open("r+b") as stream:
                stream.write(secrets.token_bytes(SECRET))
                stream.flush()
                os.fsync(stream.fileno())
            file.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OneshuiError(f"The secret {file} could not be destroyed and remains ({error.strerror}); remove it by hand.") from None
        return True

    def destroy_all(self) -> int:
        """Destroy all secrets of the artefact, its own too; return how many entries had one.

        Raises:
            OneshuiError: One could not be destroyed.
        """
        entries = sum([self.destroy(file.name.removesuffix(END)) for file in self.folder.glob(f"*{END}") if file != self._file(OWN)])
        self.destroy(OWN)
        with contextlib.suppress(OSError):  # it holds something that is not ours, or is gone
            self.folder.rmdir()
        return entries

    def _file(self, entry: str) -> Path:
        return self.folder / f"{entry}{END}"

    def _bound(self, entry: str, place: str) -> bytes:
        return f"{self.artefact}/{entry}/{place}".encode()

    def _secret(self, entry: str) -> bytes:
        file = self._file(entry)
        try:
            secret = file.read_bytes()
        except FileNotFoundError:
            self.require()
            raise OneshuiError("What was prepared for this person has been used and destroyed.") from None
        except OSError as error:
            raise OneshuiError(f"The secret {file} cannot be read ({error.strerror}).") from None
        if len(secret) != SECRET:
            raise OneshuiError(f"The secret {file} is damaged: it holds {len(secret)} bytes, not {SECRET}; prepare again.")
        return secret
