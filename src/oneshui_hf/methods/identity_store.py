"""Per-identity data of an artefact on disk: encrypted, indexed without names, decrypted one tensor at a time.

people.json            the artefact's id, an index from the HMAC of an identity to a random entry id, and the seal
people.safetensors     encrypted blobs: `<entry>` holds the identity and the names of its tensors, `<entry>/<n>` the n-th tensor

Each identity has its own secret in the vault (see `oneshui_hf.vault`), so these files alone reveal no identity. The identity is stored in
the ciphertext and not next to the secret: neither the folder nor the vault reveals it alone, and it is lost with the secret. With both,
one can still test whether a given name was among the identities, even after its secret was destroyed. The index keeps the entry so that
data that was used can be distinguished from data that never existed.

The seal is an HMAC of the artefact's public part and of the index under the artefact's own secret, and every blob is bound to the model's
weights. So only the machine with the secrets can change an artefact. Artefacts of format 1 have neither.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache import VAULT
from ..errors import OneshuiError, is_machine_error
from ..files import LEFTOVER, Discard, remove, write_bytes
from ..option_values import shown
from ..runs import METHODS, dump_json, read_object, write_json
from ..vault import ARTEFACT_SECRET, Secrets, draw_secrets, fingerprint, is_id, new_id, seal

if TYPE_CHECKING:
    import torch

HEADER, INDEX, BLOBS = "artefact.json", "people.json", "people.safetensors"
BOUND_TO = "bound_to"  # in `artefact.json` of a successor: hash of the weights of the model that the data was prepared for
FORMAT, UNSEALED = 2, 1  # the format that is written, and that of earlier versions
BLOB = re.compile(r"[0-9a-f]{32}(/\d+)?")
HMAC = re.compile(r"[0-9a-f]{64}")
HEADER_BLOCK = 256  # bytes: headers are padded to a multiple of this, so that their length does not reveal that of the name


def save_identities(
    folder: Path, people: Mapping[str, Mapping[str, torch.Tensor]], vault: Path, public: Mapping[str, Any], target: Path | None = None
) -> None:
    """Create secrets, encrypt the data, and write both files to a folder.

    The plain bytes are the same for the same seed. The written bytes are not: ids, secrets and nonces come from the system's random source.
    The index is written before the secrets exist, so whoever discards the folder of a killed process finds them.

    Args:
        folder: An empty folder, or the artefact's folder. `discard_with_secrets` removes it together with the secrets.
        people: Tensors by name, for each identity.
        vault: Folder of the secrets.
        public: Content of `artefact.json`; it contains the hash of the model's weights and that of the artefact's tensors.
        target: The artefact's folder, if `folder` will be renamed to it.
    """
    import numpy as np
    from safetensors.numpy import save

    secrets = Secrets(vault, new_id())
    entries = {identity: new_id() for identity in people}
    drawn = draw_secrets(entries.values())
    index = {fingerprint(drawn[ARTEFACT_SECRET], identity): entry for identity, entry in entries.items()}
    content = {"format": FORMAT, "artefact": secrets.artefact, "index": index}
    write_json(folder / INDEX, content | {"seal": seal(drawn[ARTEFACT_SECRET], _sealed_message(content, public))})
    secrets.create(drawn, target or folder)
    blobs: dict[str, bytes] = {}
    for place, (identity, entry) in enumerate(entries.items()):
        for name, plain in _plain_bytes(identity, place, people[identity]).items():
            blobs[f"{entry}{name}"] = secrets.encrypt(entry, name, plain, public["weights"])
    write_bytes(folder / BLOBS, save({name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}))


def _sealed_message(content: Mapping[str, Any], public: Mapping[str, Any]) -> bytes:
    return dump_json({"people": {name: value for name, value in content.items() if name != "seal"}, "public": dict(public)})


def _require_seal(folder: Path, secrets: Secrets, content: Mapping[str, Any], public: Mapping[str, Any]) -> None:
    """Check that neither the index nor `artefact.json` of a sealed artefact has changed.

    Raises:
        OneshuiError: One has.
    """
    if not secrets.has_sealed(_sealed_message(content, public), content["seal"]):
        raise OneshuiError(f"{folder} has changed since it was prepared (its seal does not match); prepare again.")


def _plain_bytes(identity: str, place: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Return the header and the tensors of an identity as bytes, by the part of the blob's name after the entry id."""
    from safetensors.torch import save

    header = json.dumps({"identity": identity, "place": place, "tensors": list(tensors)}).encode()
    padded = header.ljust(-(-len(header) // HEADER_BLOCK) * HEADER_BLOCK)
    parts = (save({name: tensor.detach().cpu().contiguous()}) for name, tensor in tensors.items())
    return {"": padded} | {f"/{number}": part for number, part in enumerate(parts)}


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of `people.json`: `format`, `artefact` (its id), `index` (HMAC of an identity to entry id) and `seal`. No names.

    Raises:
        OneshuiError: The file is missing or damaged, or contains anything else.
    """
    content = read_object(folder / INDEX)
    index, form = content.get("index"), content.get("format")
    is_valid = isinstance(index, dict) and all(HMAC.fullmatch(name) and is_id(entry) for name, entry in index.items())
    sealed = isinstance(content.get("seal"), str) and HMAC.fullmatch(content["seal"]) is not None
    if not (is_valid and is_id(content.get("artefact")) and (form == UNSEALED or (form == FORMAT and sealed))):
        raise OneshuiError(f"{folder} is damaged ({INDEX} is not an index of identities); prepare again.")
    return {name: content[name] for name in ("format", "artefact", "index", "seal") if name in content}


def artefact_id(folder: Path) -> str | None:
    """Return the id of the artefact in a folder; None if it has no valid index of identities."""
    try:
        return str(read_index(folder)["artefact"])
    except OneshuiError:
        return None


def find_stores(folder: Path, *, follow_links: bool = False) -> list[Path]:
    """Return the folders in `folder`, or itself, that contain per-identity data, hidden ones and copies included.

    Args:
        folder: The folder.
        follow_links: Whether to search in folders that links lead to.
    """
    found, seen = [], set[str]()
    for place, folders, files in os.walk(folder, followlinks=follow_links):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
        elif INDEX in files:
            found.append(Path(place))
        seen.add(real)
    return sorted(found)


def find_entry(folder: Path, identity: str, vault: Path) -> tuple[str, str] | None:
    """Return the id of an artefact and that of its entry for an identity; None if this vault has no secret of the entry.

    Raises:
        OneshuiError: The index or the artefact's own secret is damaged, or the index was changed.
    """
    content = read_index(folder)
    secrets = Secrets(vault, content["artefact"])
    if content["format"] == FORMAT and secrets.exist:
        _require_seal(folder, secrets, content, read_object(folder / HEADER))
    entry = content["index"].get(secrets.fingerprint(identity)) if secrets.exist else None
    return (secrets.artefact, entry) if entry and secrets.has_secret(entry) else None


def discard_with_secrets(vault: Path, *kept: Path) -> Discard:
    """Return a function that removes what a writer of a folder left, and destroys the secrets of the artefacts in it.

    Only the secrets of an artefact that was written there are destroyed: an index from elsewhere may name any. And they are kept as long as
    the artefact still exists: in the folder of the same name, in a run next to it, or in a kept run.

    Args:
        vault: Folder of the secrets. Those of an artefact in a cache are next to it.
        kept: Runs whose artefacts are kept.
    """

    def discard(leftover: Path) -> None:
        if leftover.is_dir() and not leftover.is_symlink() and (stores := find_stores(leftover)):  # what a link leads to stays
            folder, match = leftover.parent, LEFTOVER.fullmatch(leftover.name)
            name = match["name"] if match else leftover.name
            near = [index.parent for index in folder.glob(f"*/{METHODS}/*/{INDEX}") if not _is_leftover(index.relative_to(folder))]
            alive = {artefact_id(store) for store in (folder / name, *near, *(store for run in kept for store in find_stores(run)))}
            for store in stores:
                artefact = artefact_id(store)
                for secrets in (Secrets(place, artefact) for place in (vault, folder / f"{name}{VAULT}") if artefact is not None):
                    is_own = secrets.belong_to(folder / name / store.relative_to(leftover))
                    # Without any entry left, a killed call may have destroyed the artefact's own secret, which would show whose it is.
                    if artefact not in alive and (is_own or not len(secrets)):
                        secrets.destroy_all()
        remove(leftover)

    return discard


def _is_leftover(path: Path) -> bool:
    return any(LEFTOVER.fullmatch(part) for part in path.parts)


class IdentityStore(Mapping[str, Mapping[str, "torch.Tensor"]]):
    """The identities of a saved artefact whose secret still exists, in the order of preparation.

    `store[identity]` decrypts the names of the identity's tensors; `store[identity][name]` decrypts that one tensor.

    Attributes:
        sealed: Whether the secrets are on this machine and the seal is valid, so that the artefact is as it was prepared here.
        unreadable: Number of identities that the last iteration skipped, since their secret or data is damaged or cannot be read.
    """

    def __init__(self, folder: Path, vault: Path, public: Mapping[str, Any]) -> None:
        """Read the index, verify the seal, and open the file of blobs.

        Args:
            folder: The artefact's folder.
            vault: Folder of the secrets.
            public: Content of `artefact.json`.

        Raises:
            OneshuiError: A file is missing or damaged, or the artefact has changed since it was prepared here.
        """
        from safetensors import SafetensorError, safe_open

        self.folder, self.unreadable = folder, 0
        self._content = read_index(folder)
        self._entries: dict[str, str] = self._content["index"]
        self._secrets = Secrets(vault, self._content["artefact"])
        self._weights = public.get(BOUND_TO, public["weights"]) if self._content["format"] == FORMAT else None
        self.sealed = self._content["format"] == FORMAT and self._secrets.exist
        if self.sealed:
            _require_seal(folder, self._secrets, self._content, public)
        try:
            self._blobs: Any = safe_open(folder / BLOBS, "np")  # maps the file; a blob is read on access
        except (SafetensorError, OSError) as error:
            if is_machine_error(error):
                raise
            raise OneshuiError(f"{folder} is damaged ({shown(error)}); prepare again.") from None

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
        """Yield the identities whose secret still exists. Those that cannot be read are skipped: they do not affect the others."""
        headers, self.unreadable = [], 0
        for entry in self._remaining_entries():
            try:
                headers.append(self._read_header(entry))
            except OneshuiError:
                self.unreadable += 1
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

    def index_for(self, public: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of `people.json` for a copy of the artefact with another public part.

        Raises:
            OneshuiError: The artefact's secrets are not on this machine, so the copy cannot be sealed.
        """
        if self._content["format"] != FORMAT:
            return self._content
        return self._content | {"seal": self._secrets.seal(_sealed_message(self._content, public))}

    @property
    def binding(self) -> dict[str, Any]:
        """The field of `artefact.json` that lets a copy for another model decrypt the data."""
        return {} if self._weights is None else {BOUND_TO: self._weights}

    def copy_to(self, folder: Path, public: Mapping[str, Any], without: Collection[str]) -> None:
        """Write both files of a copy. Nothing is decrypted, and the copy has the same secrets.

        Args:
            folder: The artefact's folder.
            public: Content of its `artefact.json`, with the field of `binding`.
            without: Identities that the copy does not contain.

        Raises:
            OneshuiError: The artefact's secrets are not on this machine, or the data is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save

        left_out = {self._secrets.fingerprint(identity) for identity in without}
        index = {name: entry for name, entry in self._content["index"].items() if name not in left_out}
        content = {**self._content, "index": index}
        if self._content["format"] == FORMAT:
            content["seal"] = self._secrets.seal(_sealed_message(content, public))
        kept = set(index.values())
        try:
            blobs = {name: self._blobs.get_tensor(name) for name in self._blobs.keys() if name.partition("/")[0] in kept}  # noqa: SIM118
        except SafetensorError as error:
            raise OneshuiError(f"{self.folder} is damaged ({shown(error)}); prepare again.") from None
        write_json(folder / INDEX, content)
        write_bytes(folder / BLOBS, save(blobs))

    def read(self, entry: str, name: str) -> bytes:
        """Decrypt one blob.

        Raises:
            OneshuiError: The blob is missing or damaged, its secret is destroyed, or the artefact's secrets are not on this machine.
        """
        from safetensors import SafetensorError

        try:
            blob = self._blobs.get_tensor(f"{entry}{name}").tobytes()
        except (SafetensorError, AttributeError, TypeError) as error:  # numpy lacks some types of tensors
            raise OneshuiError(f"{self.folder} is damaged ({shown(error)}); prepare again.") from None
        return self._secrets.decrypt(entry, name, blob, self._weights)

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
