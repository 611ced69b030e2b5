"""Per-identity data of an artefact on disk: encrypted, indexed without names, decrypted one tensor at a time.

people.json            the artefact's id, and an index from the HMAC of an identity to a random entry id
people.safetensors     encrypted blobs: `<entry>` holds the identity and the names of its tensors, `<entry>/<n>` the n-th tensor

Each identity has its own secret in the vault (see `oneshui_hf.vault`), so these files alone reveal no identity. The identity is stored in
the ciphertext and not next to the secret: neither the folder nor the vault reveals it alone, and it is lost with the secret. With both,
one can still test whether a given name was among the identities, even after its secret was destroyed. The index keeps the entry so that
data that was used can be distinguished from data that never existed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError
from ..runs import read_object, write_json
from ..vault import Secrets, is_id, new_id

if TYPE_CHECKING:
    import torch

INDEX, BLOBS = "people.json", "people.safetensors"
FORMAT = 1
BLOB = re.compile(r"[0-9a-f]{32}(/\d+)?")
HMAC = re.compile(r"[0-9a-f]{64}")
HEADER_BLOCK = 256  # bytes: headers are padded to a multiple of this, so that their length does not reveal that of the name


def save_identities(folder: Path, people: Mapping[str, Mapping[str, torch.Tensor]], vault: Path) -> Secrets:
    """Create secrets, encrypt the data, and write both files to a folder.

    The plain bytes are the same for the same seed. The written bytes are not: ids, secrets and nonces come from the system's random source.

    Args:
        folder: An empty folder, or the artefact's folder.
        people: Tensors by name, for each identity.
        vault: Folder of the secrets.

    Returns:
        The secrets. Destroy them if the files are discarded.
    """
    import numpy as np
    from safetensors.numpy import save_file

    secrets = Secrets(vault, new_id())
    entries = {identity: new_id() for identity in people}
    secrets.create(entries.values())
    try:
        blobs: dict[str, bytes] = {}
        for place, (identity, entry) in enumerate(entries.items()):
            for name, plain in _plain_bytes(identity, place, people[identity]).items():
                blobs[f"{entry}{name}"] = secrets.encrypt(entry, name, plain)
        index = {secrets.fingerprint(identity): entry for identity, entry in entries.items()}
        save_file({name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}, folder / BLOBS)
        write_json(folder / INDEX, {"format": FORMAT, "artefact": secrets.artefact, "index": index})
    except BaseException:
        secrets.destroy_all()
        raise
    return secrets


def _plain_bytes(identity: str, place: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Return the header and the tensors of an identity as bytes, by the part of the blob's name after the entry id."""
    from safetensors.torch import save

    header = json.dumps({"identity": identity, "place": place, "tensors": list(tensors)}).encode()
    padded = header.ljust(-(-len(header) // HEADER_BLOCK) * HEADER_BLOCK)
    parts = (save({name: tensor.detach().cpu().contiguous()}) for name, tensor in tensors.items())
    return {"": padded} | {f"/{number}": part for number, part in enumerate(parts)}


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of `people.json`: `format`, `artefact` (its id) and `index` (HMAC of an identity to entry id). No names.

    Raises:
        OneshuiError: The file is missing or damaged, or contains anything else.
    """
    content = read_object(folder / INDEX)
    index = content.get("index")
    is_valid = isinstance(index, dict) and all(HMAC.fullmatch(name) and is_id(entry) for name, entry in index.items())
    if not (is_valid and content.get("format") == FORMAT and is_id(content.get("artefact"))):
        raise OneshuiError(f"{folder} is damaged ({INDEX} is not an index of identities); prepare again.")
    return {name: content[name] for name in ("format", "artefact", "index")}


def find_secrets(folder: Path, vault: Path) -> Secrets | None:
    """Return the secrets of an artefact's folder; None if it has no valid index of identities."""
    try:
        return Secrets(vault, read_index(folder)["artefact"])
    except OneshuiError:
        return None


class IdentityStore(Mapping[str, Mapping[str, "torch.Tensor"]]):
    """The identities of a saved artefact whose secret still exists, in the order of preparation.

    `store[identity]` decrypts the names of the identity's tensors; `store[identity][name]` decrypts that one tensor.
    """

    def __init__(self, folder: Path, vault: Path) -> None:
        """Read the index, and open the file of blobs.

        Raises:
            OneshuiError: A file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        content = read_index(folder)
        self._entries: dict[str, str] = content["index"]
        self._secrets = Secrets(vault, content["artefact"])
        try:
            self._blobs: Any = safe_open(folder / BLOBS, "np")  # maps the file; a blob is read on access
        except (SafetensorError, OSError) as error:
            raise OneshuiError(f"{folder} is damaged ({error}); prepare again.") from None

    def __getitem__(self, identity: str) -> Mapping[str, torch.Tensor]:
        """Return the tensors of an identity.

        Raises:
            KeyError: Nothing was prepared for this identity.
            OneshuiError: The data was used and destroyed, is damaged, or the artefact's secrets are not on this machine.
        """
        entry = self._entries.get(self._secrets.fingerprint(identity))
        if entry is None:
            raise KeyError(identity)
        header = self._read_header(entry)
        if header["identity"] != identity:
            raise OneshuiError(f"{self.folder} is damaged ({INDEX} points to another identity); prepare again.")
        return IdentityTensors(self, entry, header["tensors"])

    def __contains__(self, identity: object) -> bool:
        """Whether data for this identity exists and is not destroyed."""
        entry = self._entries.get(self._secrets.fingerprint(str(identity)))
        return entry is not None and self._secrets.has_secret(entry)

    def __iter__(self) -> Iterator[str]:
        """Yield the identities whose secret still exists."""
        headers = [self._read_header(entry) for entry in self._remaining_entries()]
        yield from (header["identity"] for header in sorted(headers, key=lambda header: header["place"]))

    def __len__(self) -> int:
        """Return the number of identities whose secret still exists."""
        return len(self._remaining_entries())

    def destroy(self, identity: str) -> bool:
        """Destroy the secret of an identity. Return whether there was one.

        Raises:
            OneshuiError: The secret could not be destroyed, or the artefact's secrets are not on this machine.
        """
        entry = self._entries.get(self._secrets.fingerprint(identity))
        return entry is not None and self._secrets.destroy(entry)

    def read(self, entry: str, name: str) -> bytes:
        """Decrypt one blob.

        Raises:
            OneshuiError: The blob is missing or damaged, its secret is destroyed, or the artefact's secrets are not on this machine.
        """
        from safetensors import SafetensorError

        try:
            blob = self._blobs.get_tensor(f"{entry}{name}").tobytes()
        except SafetensorError as error:
            raise OneshuiError(f"{self.folder} is damaged ({error}); prepare again.") from None
        return self._secrets.decrypt(entry, name, blob)

    def _remaining_entries(self) -> list[str]:
        self._secrets.require()
        return [entry for entry in self._entries.values() if self._secrets.has_secret(entry)]

    def _read_header(self, entry: str) -> dict[str, Any]:
        header: dict[str, Any] = json.loads(self.read(entry, ""))
        return header


class IdentityTensors(Mapping[str, "torch.Tensor"]):
    """The tensors of one identity. Each access decrypts one tensor; nothing is cached."""

    def __init__(self, store: IdentityStore, entry: str, names: list[str]) -> None:
        self._store, self._entry, self._numbers = store, entry, {name: number for number, name in enumerate(names)}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor. `IdentityStore.read` lists the errors."""
        from safetensors.torch import load

        return load(self._store.read(self._entry, f"/{self._numbers[name]}"))[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the tensors."""
        return iter(self._numbers)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._numbers)
