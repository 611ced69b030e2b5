"""The vault: the secret keys of encrypted per-identity data, stored apart from the runs that contain the data.

VAULT/
  <artefact>/           one folder per artefact, mode 0700, named by the artefact's random id
    artefact.key        the artefact's own secret, used to look up an identity's entry without storing a name
    folder.hmac         HMAC of the folder that the artefact was written to, under its own secret: others are copies, or pretend to be it
    <entry>.key         an identity's secret, mode 0600; once it is destroyed, the data encrypted with it is unreadable

Every file contains 32 bytes and nothing else, so a vault alone reveals no identity. The vault itself is not encrypted: anyone who can read
both the vault and the run can read the per-identity data.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import OneshuiError
from .files import new_folder, sync_folder, write_bytes
from .option_values import expand_home

SECRET_BYTES, NONCE_BYTES = 32, 12  # a key of AES-256 and of HMAC-SHA256; the nonce of GCM
SEAL = b"\xff"  # before a sealed message: no text in UTF-8 contains this byte, so a seal is never the fingerprint of an identity
ARTEFACT_SECRET, SUFFIX, OWNER = "artefact", ".key", "folder.hmac"
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


def draw_secrets(entries: Iterable[str]) -> dict[str, bytes]:
    """Draw an artefact's own secret and one per entry, by name.

    The random source is the operating system: secrets drawn from a seed could be drawn again by anyone.
    """
    return {name: secrets.token_bytes(SECRET_BYTES) for name in (ARTEFACT_SECRET, *entries)}


def fingerprint(secret: bytes, identity: str) -> str:
    """Return the HMAC-SHA256 of an identity under an artefact's own secret; without the secret it cannot be traced to a name."""
    return hmac.digest(secret, identity.encode(errors="surrogatepass"), "sha256").hex()  # file names need not be text


def seal(secret: bytes, message: bytes) -> str:
    """Return the HMAC-SHA256 of a message under an artefact's own secret: only who has the secret can change the message."""
    return hmac.digest(secret, SEAL + message, "sha256").hex()


def _owner_seal(secret: bytes, folder: Path) -> str:
    return seal(secret, os.fsencode(os.path.realpath(folder)))


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

    def create(self, drawn: Mapping[str, bytes], owner: Path) -> None:
        """Write secrets that `draw_secrets` returned. All files are written or none.

        Args:
            drawn: The secrets.
            owner: The artefact's folder, which need not exist yet; see `belong_to`.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with new_folder(self.folder, private=True) as scratch:
            for name, secret in drawn.items():
                handle = os.open(scratch / f"{name}{SUFFIX}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as stream:
                    stream.write(secret)
            write_bytes(scratch / OWNER, bytes.fromhex(_owner_seal(drawn[ARTEFACT_SECRET], owner)), private=True)

    def belong_to(self, folder: Path) -> bool:
        """Whether the artefact was written to this folder; not to another one, of which it is a copy, or which only has the same id."""
        with contextlib.suppress(OneshuiError, OSError):
            found = (self.folder / OWNER).read_bytes()
            return hmac.compare_digest(found, bytes.fromhex(_owner_seal(self._secret(ARTEFACT_SECRET), folder)))
        return False

    @property
    def exist(self) -> bool:
        """Whether this vault contains the artefact's secrets; those of some entries may have been destroyed."""
        return self._file(ARTEFACT_SECRET).exists()

    def require(self) -> None:
        """Check that this vault contains the artefact's secrets; some entries may have been destroyed.

        Raises:
            OneshuiError: It does not.
        """
        if not self.exist:
            raise OneshuiError(f"The secrets of this artefact are not on this machine ({self.root}); set ONESHUI_VAULT or prepare again.")

    def has_secret(self, entry: str) -> bool:
        """Whether the secret of an entry exists."""
        return self._file(entry).exists()

    def __len__(self) -> int:
        """Number of entries with a secret."""
        return sum(1 for file in self.folder.glob(f"*{SUFFIX}") if file != self._file(ARTEFACT_SECRET))

    def fingerprint(self, identity: str) -> str:
        """Return the fingerprint of an identity under the artefact's own secret.

        Raises:
            OneshuiError: The artefact's secrets are missing.
        """
        return fingerprint(self._secret(ARTEFACT_SECRET), identity)

    def find_identity(self, identities: Iterable[str], value: str) -> list[str]:
        """Return the identities whose fingerprint is a value. The secret is read once.

        Raises:
            OneshuiError: The artefact's secrets are missing.
        """
        secret = self._secret(ARTEFACT_SECRET)
        return [identity for identity in identities if hmac.compare_digest(fingerprint(secret, identity), value)]

    def seal(self, message: bytes) -> str:
        """Return the seal of a message under the artefact's own secret.

        Raises:
            OneshuiError: The artefact's secrets are missing.
        """
        return seal(self._secret(ARTEFACT_SECRET), message)

    def has_sealed(self, message: bytes, value: object) -> bool:
        """Whether a value is the seal of a message.

        Raises:
            OneshuiError: The artefact's secrets are missing.
        """
        return isinstance(value, str) and hmac.compare_digest(self.seal(message).encode(), value.encode(errors="replace"))

    def encrypt(self, entry: str, tensor: str, plaintext: bytes, weights: str) -> bytes:
        """Encrypt with AES-256-GCM and return nonce, ciphertext and tag as one blob.

        The nonce is random, so the same plaintext gives different bytes each time.

        Args:
            entry: The entry whose secret is the key.
            tensor: Name of the tensor.
            plaintext: The bytes to encrypt.
            weights: Hash of the model's weights. It is authenticated as associated data together with artefact, entry and tensor, so blobs
                cannot be swapped or used with another model.

        Raises:
            OneshuiError: The secret is missing or destroyed.
        """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._secret(entry)).encrypt(nonce, plaintext, self._associated_data(entry, tensor, weights))

    def decrypt(self, entry: str, tensor: str, blob: bytes, weights: str | None) -> bytes:
        """Decrypt a blob that `encrypt` returned.

        Args:
            entry: As in `encrypt`.
            tensor: As in `encrypt`.
            blob: The blob.
            weights: As in `encrypt`; None for a blob of an earlier version, which was not bound to them.

        Raises:
            OneshuiError: The secret is missing or destroyed, or the blob is damaged or belongs to another entry, tensor or model.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        secret = self._secret(entry)
        try:
            return AESGCM(secret).decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], self._associated_data(entry, tensor, weights))
        except (InvalidTag, ValueError):  # ValueError: too short to contain a nonce
            raise OneshuiError("The data prepared for this identity is damaged: it cannot be decrypted; prepare again.") from None

    def destroy(self, entry: str) -> bool:
        """Overwrite the secret of an entry and delete its file; return whether it existed.

        The data encrypted with it is kept and can no longer be decrypted. The overwrite is on the disk before the file is deleted, and the
        deletion before this returns. It cannot guarantee that no copy remains: flash memory writes to other cells than it read from,
        journaling and copy-on-write file systems and their snapshots may keep the old block, and backups keep their copy. If that matters,
        keep the vault on an encrypted disk and out of backups.

        Raises:
            OneshuiError: It could not be destroyed; the message names the remaining file.
        """
        file = self._file(entry)
        try:
            file.chmod(0o600)  # a file that cannot be opened for writing cannot be overwritten
            with file.open("r+b") as stream:
                stream.write(secrets.token_bytes(max(SECRET_BYTES, file.stat().st_size)))
                stream.flush()
                os.fsync(stream.fileno())
            file.unlink()
            sync_folder(self.folder)
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
        (self.folder / OWNER).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder contains other files, or is missing
            self.folder.rmdir()
        return destroyed

    def _file(self, entry: str) -> Path:
        return self.folder / f"{entry}{SUFFIX}"

    def _associated_data(self, entry: str, tensor: str, weights: str | None) -> bytes:
        return "/".join((self.artefact, entry, tensor, *(() if weights is None else (weights,)))).encode()

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
