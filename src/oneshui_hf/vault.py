"""The vault: the secret keys of encrypted per-identity data, stored apart from the runs that contain the data.

VAULT/
  <artefact>/           one folder per artefact, mode 0700, named by the artefact's random id
    artefact.key        the artefact's own secret, used to look up an identity's entry without storing a name
    <entry>.key         an identity's secret, mode 0600; once it is destroyed, the data encrypted with it is unreadable

Every file contains 32 random bytes and nothing else, so a vault alone reveals no identity. The vault itself is not encrypted: anyone who
can read both the vault and the run can read the per-identity data.
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
from .files import new_folder
from .option_values import expand_home

SECRET_BYTES, NONCE_BYTES = 32, 12  # a key of AES-256 and of HMAC-SHA256; the nonce of GCM
ARTEFACT_SECRET, SUFFIX = "artefact", ".key"
ID = re.compile(r"[0-9a-f]{32}")


def vault_root() -> Path:
    """Return the folder of secrets: $ONESHUI_VAULT, else a folder in the platform's user data directory."""
    if named := os.environ.get("ONESHUI_VAULT"):
        return Path(expand_home(named))
    data = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME")
    default = {"win32": "AppData/Local", "darwin": "Library/Application Support"}.get(sys.platform, ".local/share")
    return (Path(expand_home(data)) if data else Path.home() / default) / "oneshui" / "vault"


def new_id() -> str:
    """Return a new id for an artefact or an entry: 128 random bits."""
    return secrets.token_hex(16)


def is_id(value: object) -> bool:
    """Whether a value is such an id. Ids become part of a path and may come from an untrusted file."""
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
        """The folder of the secrets."""
        return self.root / self.artefact

    def create(self, entries: Iterable[str]) -> None:
        """Draw the artefact's own secret and one per entry. All files are written or none.

        The random source is the operating system: secrets drawn from a seed could be drawn again by anyone.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with new_folder(self.folder, private=True) as scratch:
            for name in (ARTEFACT_SECRET, *entries):
                handle = os.open(scratch / f"{name}{SUFFIX}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(secrets.token_bytes(SECRET_BYTES))

    def require(self) -> None:
        """Check that this vault contains the artefact's secrets; some entries may have been destroyed.

        Raises:
            OneshuiError: It does not.
        """
        if not self._file(ARTEFACT_SECRET).exists():
            raise OneshuiError(f"The secrets of this artefact are not on this machine ({self.root}); set ONESHUI_VAULT or prepare again.")

    def has_secret(self, entry: str) -> bool:
        """Whether the secret of an entry exists."""
        return self._file(entry).exists()

    def __len__(self) -> int:
        """Number of entries with a secret."""
        return sum(1 for file in self.folder.glob(f"*{SUFFIX}") if file != self._file(ARTEFACT_SECRET))

    def fingerprint(self, identity: str) -> str:
        """Return the HMAC-SHA256 of an identity under the artefact's own secret; without the secret it cannot be traced to a name.

        Raises:
            OneshuiError: The artefact's secrets are missing.
        """
        return hmac.digest(self._secret(ARTEFACT_SECRET), identity.encode(), "sha256").hex()

    def encrypt(self, entry: str, tensor: str, plaintext: bytes) -> bytes:
        """Encrypt with AES-256-GCM and return nonce, ciphertext and tag as one blob.

        The nonce is random, so the same plaintext gives different bytes each time.

        Args:
            entry: The entry whose secret is the key.
            tensor: Name of the tensor. Artefact, entry and tensor are authenticated as associated data, so blobs cannot be swapped.
            plaintext: The bytes to encrypt.

        Raises:
            OneshuiError: The secret is missing or destroyed.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._secret(entry)).encrypt(nonce, plaintext, self._associated_data(entry, tensor))

    def decrypt(self, entry: str, tensor: str, blob: bytes) -> bytes:
        """Decrypt a blob that `encrypt` returned.

        Raises:
            OneshuiError: The secret is missing or destroyed, or the blob is damaged or belongs to another entry or tensor.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = self._secret(entry)
        try:
            return AESGCM(secret).decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], self._associated_data(entry, tensor))
        except (InvalidTag, ValueError):  # ValueError: too short to contain a nonce
            raise OneshuiError("The data prepared for this identity is damaged: it cannot be decrypted; prepare again.") from None

    def destroy(self, entry: str) -> bool:
        """Overwrite the secret of an entry and delete its file; return whether it existed.

        The data encrypted with it is kept and can no longer be decrypted. The overwrite reaches the disk before the file is deleted. It
        cannot guarantee that no copy remains: flash memory writes to other cells than it read from, journaling and copy-on-write file
        systems and their snapshots may keep the old block, and backups keep their copy. If that matters, keep the vault on an encrypted
        disk and out of backups.

        Raises:
            OneshuiError: It could not be destroyed; the message names the remaining file.
        """
        file = self._file(entry)
        try:
            with file.open("r+b") as stream:
                stream.write(secrets.token_bytes(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            file.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OneshuiError(f"The secret {file} could not be destroyed and remains ({error.strerror}); delete it by hand.") from None
        return True

    def destroy_all(self) -> int:
        """Destroy all secrets of the artefact, including its own; return how many entries had one.

        Raises:
            OneshuiError: One could not be destroyed.
        """
        files = [file for file in self.folder.glob(f"*{SUFFIX}") if file != self._file(ARTEFACT_SECRET)]
        destroyed = sum([self.destroy(file.name.removesuffix(SUFFIX)) for file in files])
        self.destroy(ARTEFACT_SECRET)
        with contextlib.suppress(OSError):  # the folder contains other files, or is missing
            self.folder.rmdir()
        return destroyed

    def _file(self, entry: str) -> Path:
        return self.folder / f"{entry}{SUFFIX}"

    def _associated_data(self, entry: str, tensor: str) -> bytes:
        return f"{self.artefact}/{entry}/{tensor}".encode()

    def _secret(self, entry: str) -> bytes:
        file = self._file(entry)
        try:
            secret = file.read_bytes()
        except FileNotFoundError:
            self.require()
            raise OneshuiError("The data prepared for this identity has been used and destroyed.") from None
        except OSError as error:
            raise OneshuiError(f"The secret {file} cannot be read ({error.strerror}).") from None
        if len(secret) != SECRET_BYTES:
            raise OneshuiError(f"The secret {file} is damaged: it contains {len(secret)} bytes, not {SECRET_BYTES}; prepare again.")
        return secret
