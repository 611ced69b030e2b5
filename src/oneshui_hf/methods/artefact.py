"""The artefact of a preparation: tensors in safetensors, the rest in JSON, bound to one model by the hash of its weights.

methods/<name>/artefact.json           options, report, hashes of the model's weights, of the tensors and of itself
methods/<name>/artefact.safetensors
methods/<name>/people.json             per-identity data, encrypted; see `identity_store`
methods/<name>/people.safetensors
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError, is_machine_error
from ..files import new_folder, write_bytes
from ..option_values import shown
from ..runs import has_valid_checksum, hash_file, read_object, versions, with_checksum, write_json
from ..vault import vault_root
from .identity_store import BLOBS, BOUND_TO, HEADER, INDEX, IdentityStore, discard_with_secrets, save_identities

if TYPE_CHECKING:
    import torch

    from .resume import ResumeState

TENSORS = "artefact.safetensors"
FORMAT = 1
FIELD_TYPES = {"weights": str, "values": dict, "options": dict, "report": dict}  # of artefact.json, besides format and method
OPTIONAL_FIELD_TYPES: dict[str, type] = {"private": bool, BOUND_TO: str}


@dataclass
class Artefact:
    """What a method prepared.

    Attributes:
        tensors: Tensors that `apply` reads.
        values: JSON values that `apply` reads.
        people: Per-identity data: identity key to tensors by name. Encrypted on disk, decrypted one identity at a time, and published only
            on explicit confirmation. A loaded artefact contains only identities whose secret still exists.
        options: The options of the preparation.
        report: Entries about the preparation, for reports.
        sealed: Whether it was loaded with per-identity data that was prepared on this machine, and nothing of it has changed since.
        private: Whether it is never published, since its tensors show data of single identities when they are compared with others.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    people: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    sealed: bool = False
    private: bool = False

    def save(self, folder: Path, method: str, weights: str, *, replace: bool, vault: Path | None = None) -> None:
        """Write the folder, bound to the model with these weights, and the secrets of its identities to the vault.

        The secrets of a replaced artefact are destroyed once the new one is written. Per-identity data in copies of the replaced folder
        cannot be decrypted from then on. If the process is killed, `clear_leftovers` with `discard_with_secrets` completes this.

        Args:
            folder: The artefact's folder.
            method: Name of the method.
            weights: Hash of the weights of the model that the artefact was prepared for.
            replace: Whether an existing folder may be replaced.
            vault: Folder of the secrets; the user's own vault by default.

        Raises:
            OneshuiError: A result is not finite; or the artefact is written, but secrets of the replaced one could not be destroyed.
        """
        from safetensors.torch import save

        vault = vault or vault_root()
        self._require_finite()
        with new_folder(folder, replace=replace, discard=discard_with_secrets(vault)) as scratch:
            write_bytes(scratch / TENSORS, save(_contiguous(self.tensors)))
            header = {"format": FORMAT, "method": method, "weights": weights, "versions": versions()}
            header = write_header(scratch, header | self._described())
            if self.people:
                save_identities(scratch, self.people, vault, header, folder)

    def save_state(self, state: ResumeState) -> None:
        """Save what a method prepared as a resume state, for a preparation that has more to do."""
        people = {f"people/{index}/{name}": part for index, parts in enumerate(self.people.values()) for name, part in parts.items()}
        tensors = {f"tensors/{name}": part for name, part in self.tensors.items()} | people
        state.save(tensors, {"values": self.values, "report": self.report, "private": self.private, "people": list(self.people)})

    @classmethod
    def load_state(cls, state: ResumeState) -> Artefact | None:
        """Return what `save_state` saved; None if nothing was.

        Raises:
            OneshuiError: See `ResumeState.load`.
        """
        if (found := state.load()) is None:
            return None
        names = found[1]["people"]
        tensors: dict[str, torch.Tensor] = {}
        people: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for key, tensor in found[0].items():
            kind, _, name = key.partition("/")
            if kind == "people":
                index, _, name = name.partition("/")
                people[names[int(index)]][name] = tensor
            else:
                tensors[name] = tensor
        return cls(tensors, found[1]["values"], people, report=found[1]["report"], private=found[1]["private"])

    def _described(self) -> dict[str, Any]:
        return {"options": self.options, "values": self.values, "report": self.report} | ({"private": True} if self.private else {})

    def save_successor(self, folder: Path, of: Artefact, method: str, weights: str, forgotten: Collection[str]) -> None:
        """Write the artefact for later requests to the model that a request made.

        The encrypted data of the other identities is copied as it is, under the same secrets, so whoever destroys a secret destroys the
        data in both artefacts.

        Args:
            folder: A new folder.
            of: The artefact of the request, as loaded from disk; tensors of this one replace its own, values override its own.
            method: Name of the method.
            weights: Hash of the weights of the new model.
            forgotten: Identities whose data is not copied.

        Raises:
            OneshuiError: A result is not finite, or the data cannot be copied.
        """
        from safetensors.torch import save

        new = Artefact(self.tensors, {**of.values, **self.values}, options=of.options, report=of.report, private=self.private)
        new._require_finite()
        folder.mkdir(parents=True)
        write_bytes(folder / TENSORS, save(_contiguous(new.tensors)))
        header = {"format": FORMAT, "method": method, "weights": weights, "versions": versions()} | new._described()
        if isinstance(of.people, IdentityStore):
            of.people.copy_to(folder, write_header(folder, header | of.people.binding), forgotten)
        else:
            write_header(folder, header)

    def _require_finite(self) -> None:
        from ..models.weights import is_finite

        tensors = [*self.tensors.values(), *(tensor for parts in self.people.values() for tensor in parts.values())]
        if not all(map(is_finite, tensors)) or not _has_finite_numbers([self.values, self.options, self.report]):
            raise OneshuiError(
                "The preparation gave results that are not finite, so nothing was written; use a smaller step or other options."
            )

    def number(self, name: str, default: float | None = None) -> float:
        """Return a number of `values`.

        Args:
            name: Its name.
            default: The number if there is none.

        Raises:
            OneshuiError: It is missing or not a finite number.
        """
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise OneshuiError(f"The artefact is damaged ({HEADER} contains no number '{name}'); prepare again.")
        return value

    def require_tensors(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Check that `tensors` has these names and shapes and no others.

        Raises:
            OneshuiError: It has not.
        """
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        for name in sorted({**shapes, **found}):
            if name not in found or name not in shapes or found[name] != tuple(shapes[name]):
                kind = "lacks a tensor" if name not in found else "has an unknown tensor" if name not in shapes else "has a wrong shape"
                raise OneshuiError(f"The artefact is damaged, or not of this model ({TENSORS} {kind}: {shown(name)}); prepare again.")

    def destroy(self, identity: str) -> bool:
        """Destroy the data of an identity. Return whether there was any.

        Raises:
            OneshuiError: The data could not be destroyed.
        """
        if isinstance(self.people, IdentityStore):
            return self.people.destroy(identity)
        others = {person: tensors for person, tensors in self.people.items() if person != identity}
        found, self.people = len(others) < len(self.people), others
        return found

    @classmethod
    def load(cls, folder: Path, method: str, weights: str, *, force: bool = False, vault: Path | None = None) -> Artefact:
        """Read an artefact's folder.

        Args:
            folder: The artefact's folder.
            method: Name of the method.
            weights: Hash of the weights of the model that the artefact will be applied to.
            force: Accept an artefact that was prepared for another model.
            vault: Folder of the secrets; the user's own vault by default.

        Raises:
            UsageError: The folder does not exist.
            OneshuiError: The artefact is damaged, belongs to another method, or was prepared for another model.
        """
        if not folder.is_dir():
            raise UsageError(f"Method '{method}' has not been prepared for {folder.parent.parent}; run `oneshui prepare` first.")
        header = read_header(folder)
        if header["method"] != method:
            raise OneshuiError(f"{folder} is not an artefact of method '{method}' that this version reads.")
        if header["weights"] != weights and not force:
            raise OneshuiError(
                f"{folder} was prepared for a model with other weights ({shown(header['weights'][:12])}, not {weights[:12]}); "
                "prepare again, or use --force."
            )
        has_people = (folder / INDEX).exists() or (folder / BLOBS).exists()
        people = IdentityStore(folder, vault or vault_root(), header) if has_people else {}
        return cls(
            tensors=_read_tensors(folder),
            values=header["values"],
            people=people,
            options=header["options"],
            report=header["report"],
            sealed=isinstance(people, IdentityStore) and people.sealed,
            private=header.get("private", False),
        )


def write_header(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Write `artefact.json` next to the tensors, with their hash and its own, and return its content."""
    content = with_checksum({**header, "tensors": hash_file(folder / TENSORS)})
    write_json(folder / HEADER, content)
    return content


def read_header(folder: Path) -> dict[str, Any]:
    """Return the content of `artefact.json`. Earlier versions wrote no hashes.

    Raises:
        OneshuiError: It is missing or damaged, this version does not read it, or the tensors are not those that it was written for.
    """
    header = read_object(folder / HEADER)
    if header.get("format") != FORMAT or not isinstance(header.get("method"), str):
        raise OneshuiError(f"{folder} is not an artefact that this version reads.")
    for name, kind in FIELD_TYPES.items():
        if not isinstance(header.get(name), kind):
            raise OneshuiError(f"{folder} is damaged ({HEADER} has no {name}); prepare again.")
    for name, expected in OPTIONAL_FIELD_TYPES.items():
        if not isinstance(header.get(name, expected()), expected):
            raise OneshuiError(f"{folder} is damaged ({HEADER} has a wrong {name}); prepare again.")
    if any(folder.glob("private.*")):
        raise OneshuiError(
            f"{folder} was written by an earlier version, which did not encrypt per-identity data; prepare again with --overwrite."
        )
    if "content" in header and not has_valid_checksum(header):
        raise OneshuiError(f"{folder} has changed since it was prepared ({HEADER} does not match its hash); prepare again.")
    try:
        has_changed = "tensors" in header and header["tensors"] != hash_file(folder / TENSORS)
    except OSError as error:
        if is_machine_error(error):
            raise
        raise OneshuiError(f"{folder} is damaged ({TENSORS} cannot be read: {error.strerror}); prepare again.") from None
    if has_changed:
        raise OneshuiError(f"{folder} has changed since it was prepared ({TENSORS} does not match its hash); prepare again.")
    return header


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an artefact.

    Raises:
        OneshuiError: The file is damaged, or a number is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ..models.weights import is_finite

    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, OSError) as error:
        if is_machine_error(error):
            raise
        raise OneshuiError(f"{folder} is damaged ({shown(error)}); prepare again.") from None
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise OneshuiError(f"{folder} is damaged ({TENSORS} has a number that is not finite: {shown(name)}); prepare again.")
    return tensors


def _has_finite_numbers(value: Any) -> bool:
    if isinstance(value, Mapping | list | tuple):
        return all(map(_has_finite_numbers, value.values() if isinstance(value, Mapping) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors detached, contiguous and on the CPU, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
