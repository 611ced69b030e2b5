"""What a method prepares for single people, on disk: encrypted, found without a name, read one tensor at a time.

people.json            the artefact's id, and an index from the HMAC of an identity to a random entry id
people.safetensors     blobs of bytes: `<entry>` the person's identity and the names of their tensors, `<entry>/<n>` the n-th tensor

Each person has a secret of their own in the vault (see `oneshui_hf.vault`), and so these files alone tell nobody's name. The identity lies
in the ciphertext and not beside the secret: neither the folder nor the vault tells it alone, and it goes with the secret. Who has both
can still ask whether somebody, known by name, was among the people, also when their secret is destroyed: the index stays, so
that what was used can be told from what never was there.
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
PADDED = 256  # bytes: the length of an entry's head must not tell that of a name


def save_people(folder: Path, people: Mapping[str, Mapping[str, torch.Tensor]], vault: Path) -> Secrets:
    """Draw secrets, encrypt, and write both files into a folder.

    What is encrypted is the same bytes for the same seed. What is written is not: ids, secrets and nonces are drawn by the system.

    Args:
        folder: An empty one, or that of the artefact.
        people: By identity, each person's tensors by name.
        vault: Where the secrets go.

    Returns:
        The secrets, to be destroyed where the files come to nothing.
    """
    import numpy as np
    from safetensors.numpy import save_file

    secrets = Secrets(vault, new_id())
    entries = {identity: new_id() for identity in people}
    secrets.create(entries.values())
    try:
        blobs: dict[str, bytes] = {}
        for place, (identity, entry) in enumerate(entries.items()):
            for name, plain in _plain(identity, place, people[identity]).items():
                blobs[f"{entry}{name}"] = secrets.seal(entry, name, plain)
        index = {secrets.fingerprint(identity): entry for identity, entry in entries.items()}
        save_file({name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}, folder / BLOBS)
        write_json(folder / INDEX, {"format": FORMAT, "artefact": secrets.artefact, "index": index})
    except BaseException:
        secrets.destroy_all()
        raise
    return secrets


def _plain(identity: str, place: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """Return a person's head and tensors as bytes, by what follows the entry's id in the blob's name."""
    from safetensors.torch import save

    head = json.dumps({"identity": identity, "place": place, "tensors": list(tensors)}).encode()
    padded = head.ljust(-(-len(head) // PADDED) * PADDED)
    parts = (save({name: tensor.detach().cpu().contiguous()}) for name, tensor in tensors.items())
    return {"": padded} | {f"/{number}": part for number, part in enumerate(parts)}


def public_index(folder: Path) -> dict[str, Any]:
    """Return what `people.json` holds, all of it numbers: `format`, `artefact`, its id, and `index`, the entry of each person's HMAC.

    Raises:
        OneshuiError: The file is missing or damaged, or holds anything but numbers.
    """
    found = read_object(folder / INDEX)
    index = found.get("index")
    sound = isinstance(index, dict) and all(HMAC.fullmatch(name) and is_id(entry) for name, entry in index.items())
    if not (sound and found.get("format") == FORMAT and is_id(found.get("artefact"))):
        raise OneshuiError(f"{folder} is damaged ({INDEX} is no index of people); prepare again.")
    return {name: found[name] for name in ("format", "artefact", "index")}


def secrets_of(folder: Path, vault: Path) -> Secrets | None:
    """Return the secrets of an artefact's folder; None where it holds no people, or does not tell which are its own."""
    try:
        return Secrets(vault, public_index(folder)["artefact"])
    except OneshuiError:
        return None


class People(Mapping[str, Mapping[str, "torch.Tensor"]]):
    """The people of an artefact on disk whose secret is still there, in the order in which they were prepared.

    `people[identity]` decrypts who that is and what tensors there are, `people[identity][name]` that one tensor.
    """

    def __init__(self, folder: Path, vault: Path) -> None:
        """Read the index, and which blobs there are.

        Raises:
            OneshuiError: A file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        found = public_index(folder)
        self._entries: dict[str, str] = found["index"]
        self._secrets = Secrets(vault, found["artefact"])
        try:
            self._blobs: Any = safe_open(folder / BLOBS, "np")  # maps the file, and reads of it what is asked for
        except (SafetensorError, OSError) as error:
            raise OneshuiError(f"{folder} is damaged ({error}); prepare again.") from None

    def __getitem__(self, identity: str) -> Mapping[str, torch.Tensor]:
        """Return a person's tensors.

        Raises:
            KeyError: Nothing was prepared for them.
            OneshuiError: It has been used and destroyed, is damaged, or the artefact's secrets are not here.
        """
        entry = self._entries.get(self._secrets.fingerprint(identity))
        if entry is None:
            raise KeyError(identity)
        head = self._head(entry)
        if head["identity"] != identity:
            raise OneshuiError(f"{self.folder} is damaged ({INDEX} leads to somebody else); prepare again.")
        return Person(self, entry, head["tensors"])

    def __contains__(self, identity: object) -> bool:
        """Whether there is something for a person, and not destroyed."""
        entry = self._entries.get(self._secrets.fingerprint(str(identity)))
        return entry is not None and self._secrets.holds(entry)

    def __iter__(self) -> Iterator[str]:
        """Yield the identities of those whose secret is still there."""
        heads = [self._head(entry) for entry in self._there()]
        yield from (head["identity"] for head in sorted(heads, key=lambda head: head["place"]))

    def __len__(self) -> int:
        """How many they are."""
        return len(self._there())

    def destroy(self, identity: str) -> bool:
        """Destroy the secret of a person; return whether there was one.

        Raises:
            OneshuiError: It could not be destroyed, or the artefact's secrets are not here.
        """
        entry = self._entries.get(self._secrets.fingerprint(identity))
        return entry is not None and self._secrets.destroy(entry)

    def read(self, entry: str, name: str) -> bytes:
        """Decrypt one blob.

        Raises:
            OneshuiError: It is missing or damaged, its secret is destroyed, or the artefact's secrets are not here.
        """
        from safetensors import SafetensorError

        try:
            blob = self._blobs.get_tensor(f"{entry}{name}").tobytes()
        except SafetensorError as error:
            raise OneshuiError(f"{self.folder} is damaged ({error}); prepare again.") from None
        return self._secrets.open(entry, name, blob)

    def _there(self) -> list[str]:
        self._secrets.require()
        return [entry for entry in self._entries.values() if self._secrets.holds(entry)]

    def _head(self, entry: str) -> dict[str, Any]:
        head: dict[str, Any] = json.loads(self.read(entry, ""))
        return head


class Person(Mapping[str, "torch.Tensor"]):
    """The tensors of one person, each decrypted when it is asked for, and anew each time."""

    def __init__(self, people: People, entry: str, names: list[str]) -> None:
        self._people, self._entry, self._numbers = people, entry, {name: number for number, name in enumerate(names)}

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return a tensor; see `People.read` for what is raised."""
        from safetensors.torch import load

        return load(self._people.read(self._entry, f"/{self._numbers[name]}"))[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the tensors."""
        return iter(self._numbers)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._numbers)
