"""What a desk keeps of a person: the photo, the name and the predicted labels, encrypted, and keyed commitments to the former two.

Each request has secrets of its own in the vault. The ledger contains HMAC-SHA256 values of the photo and of the identity's name under the
first one: with it, anyone can test whether a given photo or name is the one of the request; without it, the values show nothing. The files
`kept/<secret>.photo`, `.identity` and `.labels` are encrypted with the second one (AES-256-GCM). Once the secrets are destroyed, what
remains cannot be linked to a person, and the ledger is as valid as before.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import OneshuiError
from ..files import open_regular, write_bytes
from ..vault import Secrets, draw_secrets, is_id, new_id

KEPT = "kept"  # the folder, in that of the desk
ENTRY = "kept"  # the secret that encrypts
BOUND_TO = "request"
BLOCK = 256  # bytes: names are padded to a multiple of this, so that the size of the file does not show their length


class KeptData:
    """The photo and the identity of one request."""

    def __init__(self, folder: Path, vault: Path, secret: str) -> None:
        """Name what is kept of a request.

        Args:
            folder: The desk's folder.
            vault: Folder of the secrets.
            secret: The id of the request's secrets.
        """
        self._folder, self._secrets = folder / KEPT, Secrets(vault, secret)

    @classmethod
    def create(cls, folder: Path, vault: Path) -> KeptData:
        """Draw the secrets of a new request."""
        kept = cls(folder, vault, new_id())
        kept._folder.mkdir(mode=0o700, exist_ok=True)
        kept._secrets.create(draw_secrets([ENTRY]), folder)
        return kept

    @property
    def secret(self) -> str:
        """The id of the request's secrets."""
        return self._secrets.artefact

    def keep_photo(self, photo: bytes) -> str:
        """Keep the photo's file, and return the commitment to it."""
        self._write("photo", photo)
        return self._secrets.seal(photo)

    def keep_identity(self, identity: str) -> str:
        """Keep the identity's name, and return the commitment to it."""
        text = json.dumps(identity).encode()
        self._write("identity", text.ljust(-(-len(text) // BLOCK) * BLOCK))
        return self._secrets.fingerprint(identity)

    def keep_labels(self, labels: Mapping[str, float]) -> None:
        """Keep the labels, by name, to which the losses of the receipt refer."""
        text = json.dumps(labels).encode()
        self._write("labels", text.ljust(-(-len(text) // BLOCK) * BLOCK))

    def labels(self) -> dict[str, float] | None:
        """Return these labels; None if none were kept. `photo` lists the errors."""
        return dict(json.loads(self._read("labels"))) if self._file("labels").exists() else None

    @property
    def readable(self) -> bool:
        """Whether the vault has the secrets of the request; they may be on another machine, or erased."""
        return self._secrets.exist

    def photo(self) -> bytes:
        """Return the bytes of the photo's file.

        Raises:
            OneshuiError: It was erased, is damaged, or its secret is not on this machine.
        """
        return self._read("photo")

    def identity(self) -> str:
        """Return the identity's name. `photo` lists the errors."""
        return str(json.loads(self._read("identity")))

    def has_identity(self, identity: str, commitment: str | None) -> bool:
        """Whether a name is the one that a commitment of this request was made for.

        Raises:
            OneshuiError: The secret was destroyed, or is not on this machine.
        """
        self._require()
        return commitment is not None and hmac.compare_digest(self._secrets.fingerprint(identity), commitment)

    def find_identity(self, names: Iterable[str], commitment: str) -> list[str]:
        """Return those of many names that a commitment of this request was made for. `has_identity` lists the errors."""
        self._require()
        return self._secrets.find_identity(names, commitment)

    def has_photo(self, photo: bytes, commitment: str) -> bool:
        """Whether a photo's file is the one that a commitment of this request was made for. `has_identity` lists the errors."""
        self._require()
        return self._secrets.has_sealed(photo, commitment)

    def erase(self) -> None:
        """Destroy the secrets, see `vault.Secrets.destroy`, and remove the files. Repeating it changes nothing.

        Raises:
            OneshuiError: A secret could not be destroyed.
        """
        self._secrets.destroy_all()
        for file in self._folder.glob(f"{self.secret}.*"):
            file.unlink()

    def _write(self, name: str, data: bytes) -> None:
        self._require()
        write_bytes(self._file(name), self._secrets.encrypt(ENTRY, name, data, BOUND_TO), private=True)

    def _read(self, name: str) -> bytes:
        self._require()
        try:
            with open_regular(self._file(name)) as stream:
                blob = stream.read()
        except FileNotFoundError:
            raise OneshuiError(f"{self._file(name)} is missing; restore it from a copy, or give the photo and the name again.") from None
        try:
            return self._secrets.decrypt(ENTRY, name, blob, BOUND_TO)
        except OneshuiError:
            raise OneshuiError(f"{self._file(name)} is damaged: it cannot be decrypted. Restore it from a copy.") from None

    def _file(self, name: str) -> Path:
        return self._folder / f"{self.secret}.{name}"

    def _require(self) -> None:
        if not self._secrets.exist:
            raise OneshuiError(
                f"What the desk kept of this request cannot be read: its secret was erased, or is not in the vault ({self._secrets.root})."
            )


def erase_unlisted(folder: Path, vault: Path, listed: set[str]) -> None:
    """Erase what a killed `receive` kept before its entry was written. Secrets that were not made for this desk are left alone.

    Args:
        folder: The desk's folder.
        vault: Folder of the secrets.
        listed: The ids of the secrets of all requests of the ledger.
    """
    for secret in {file.name.partition(".")[0] for file in (folder / KEPT).glob("[0-9a-f]*.*")} - listed:
        if is_id(secret) and Secrets(vault, secret).belong_to(folder):
            KeptData(folder, vault, secret).erase()
