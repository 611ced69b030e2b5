"""The artefact of a preparation: tensors in safetensors, the rest in JSON, bound to one model by the hash of its weights.

methods/<name>/artefact.json           options, report, hash of the model's weights
methods/<name>/artefact.safetensors
methods/<name>/people.json             per-identity data, encrypted; see `identity_store`
methods/<name>/people.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError
from ..files import new_folder, write_bytes
from ..runs import dump_json, read_object, versions
from ..vault import Secrets, vault_root
from .identity_store import BLOBS, INDEX, IdentityStore, find_secrets, save_identities

if TYPE_CHECKING:
    import torch

PUBLIC = "artefact"
FORMAT = 1
FIELD_TYPES = {"weights": str, "values": dict, "options": dict, "report": dict}  # of artefact.json, besides format and method


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
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    people: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, method: str, weights: str, *, replace: bool, vault: Path | None = None) -> None:
        """Write the folder, bound to the model with these weights, and the secrets of its identities to the vault.

        The secrets of a replaced artefact are destroyed once the new one is written. Per-identity data in copies of the replaced folder
        cannot be decrypted from then on.

        Args:
            folder: The artefact's folder.
            method: Name of the method.
            weights: Hash of the weights of the model that the artefact was prepared for.
            replace: Whether an existing folder may be replaced.
            vault: Folder of the secrets; the user's own vault by default.

        Raises:
            OneshuiError: The artefact is written, but secrets of the replaced one could not be destroyed.
        """
        from safetensors.torch import save

        vault = vault or vault_root()
        header = {"format": FORMAT, "method": method, "weights": weights, "versions": versions()}
        public = header | {"options": self.options, "values": self.values, "report": self.report}
        replaced, created = find_secrets(folder, vault), None
        try:
            with new_folder(folder, replace=replace) as scratch:
                write_bytes(scratch / f"{PUBLIC}.json", dump_json(public))
                write_bytes(scratch / f"{PUBLIC}.safetensors", save(_contiguous(self.tensors)))
                created = save_identities(scratch, self.people, vault) if self.people else None
        except BaseException:
            _destroy(created)
            raise
        _destroy(replaced)

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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not folder.is_dir():
            raise UsageError(f"Method '{method}' has not been prepared for {folder.parent.parent}; run `oneshui prepare` first.")
        header = read_object(folder / f"{PUBLIC}.json")
        if header.get("method") != method or header.get("format") != FORMAT:
            raise OneshuiError(f"{folder} is not an artefact of method '{method}' that this version reads.")
        for name, kind in FIELD_TYPES.items():
            if not isinstance(header.get(name), kind):
                raise OneshuiError(f"{folder} is damaged ({PUBLIC}.json has no {name}); prepare again.")
        if header["weights"] != weights and not force:
            raise OneshuiError(
                f"{folder} was prepared for a model with other weights ({header['weights'][:12]}, not {weights[:12]}); "
                "prepare again, or use --force."
            )
        if any(folder.glob("private.*")):
            raise OneshuiError(
                f"{folder} was written by an earlier version, which did not encrypt per-identity data; prepare again with --overwrite."
            )
        try:
            tensors = load_file(folder / f"{PUBLIC}.safetensors")
        except (SafetensorError, OSError) as error:
            raise OneshuiError(f"{folder} is damaged ({error}); prepare again.") from None
        has_people = (folder / INDEX).exists() or (folder / BLOBS).exists()
        return cls(
            tensors=tensors,
            values=header["values"],
            people=IdentityStore(folder, vault or vault_root()) if has_people else {},
            options=header["options"],
            report=header["report"],
        )


def _destroy(secrets: Secrets | None) -> None:
    if secrets is not None:
        secrets.destroy_all()


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors detached, contiguous and on the CPU, as safetensors requires."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
