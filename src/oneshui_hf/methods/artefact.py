"""What a method prepares, on disk: tensors in safetensors, the rest in JSON, bound to the model that it was made for.

methods/<name>/artefact.json           options, report, binding
methods/<name>/artefact.safetensors
methods/<name>/people.json             what concerns single people, encrypted; see `people`
methods/<name>/people.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError
from ..runs import dump_json, new_folder, read_object, versions, write_bytes
from ..vault import Secrets, vault_root
from .identity_store import BLOBS, INDEX, People, save_people, secrets_of

if TYPE_CHECKING:
    import torch

PUBLIC = "artefact"
FORMAT = 1
PARTS = {"weights": str, "values": dict, "options": dict, "report": dict}  # of the header, beside format and method


@dataclass
class Artefact:
    """A method's preparation.

    Attributes:
        tensors: What `apply` reads.
        values: What `apply` reads, as JSON.
        people: What concerns one person each: identity key to tensors by name. Encrypted on disk, not published unless asked for twice,
            and read person by person. A loaded one has those alone whose secret is still there.
        options: The options that it was prepared with.
        report: What is known of the preparation.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    people: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, method: str, weights: str, *, replace: bool, vault: Path | None = None) -> None:
        """Write the folder, bound to the model with these weights, and the secrets of its people into the vault.

        The secrets of an artefact that is replaced are destroyed once the new one is in its place; a copy of its folder elsewhere is
        worthless from then on, as far as it concerns people.

        Args:
            folder: Where it goes.
            method: Who made it.
            weights: The hash of the model that it was made for.
            replace: Whether it may take the place of another one.
            vault: Where secrets are kept; the user's own vault by default.

        Raises:
            OneshuiError: It is written, but secrets of the one that it replaces could not be destroyed.
        """
        from safetensors.torch import save

        vault = vault or vault_root()
        header = {"format": FORMAT, "method": method, "weights": weights, "versions": versions()}
        public = header | {"options": self.options, "values": self.values, "report": self.report}
        replaced, drawn = secrets_of(folder, vault), None
        try:
            with new_folder(folder, replace=replace) as scratch:
                write_bytes(scratch / f"{PUBLIC}.json", dump_json(public))
                write_bytes(scratch / f"{PUBLIC}.safetensors", save(_plain(self.tensors)))
                drawn = save_people(scratch, self.people, vault) if self.people else None
        except BaseException:
            _destroy(drawn)
            raise
        _destroy(replaced)

    def destroy(self, identity: str) -> bool:
        """Destroy what was prepared for a person; return whether there was anything.

        Raises:
            OneshuiError: It could not be destroyed.
        """
        if isinstance(self.people, People):
            return self.people.destroy(identity)
        kept = {person: tensors for person, tensors in self.people.items() if person != identity}
        found, self.people = len(kept) < len(self.people), kept
        return found

    @classmethod
    def load(cls, folder: Path, method: str, weights: str, *, force: bool = False, vault: Path | None = None) -> Artefact:
        """Read a folder.

        Args:
            folder: Where it lies.
            method: The method that asks for it.
            weights: The hash of the model that it will be applied to.
            force: Accept another model's artefact.
            vault: Where secrets are kept; the user's own vault by default.

        Raises:
            UsageError: There is none.
            OneshuiError: It is damaged, of another method, or was made for another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not folder.is_dir():
            raise UsageError(f"Method '{method}' has not been prepared for {folder.parent.parent}; run `oneshui prepare` first.")
        header = read_object(folder / f"{PUBLIC}.json")
        if header.get("method") != method or header.get("format") != FORMAT:
            raise OneshuiError(f"{folder} is not an artefact of method '{method}' that this version reads.")
        for part, kind in PARTS.items():
            if not isinstance(header.get(part), kind):
                raise OneshuiError(f"{folder} is damaged ({PUBLIC}.json has no {part}); prepare again.")
        if header["weights"] != weights and not force:
            raise OneshuiError(
                f"{folder} was prepared for a model with other weights ({header['weights'][:12]}, not {weights[:12]}); "
                "prepare again, or insist with --force."
            )
        if any(folder.glob("private.*")):
            raise OneshuiError(
                f"{folder} is of an earlier version, which did not encrypt what concerns people; prepare again with --overwrite."
            )
        try:
            tensors = load_file(folder / f"{PUBLIC}.safetensors")
        except (SafetensorError, OSError) as error:
            raise OneshuiError(f"{folder} is damaged ({error}); prepare again.") from None
        has_people = (folder / INDEX).exists() or (folder / BLOBS).exists()
        return cls(
            tensors=tensors,
            values=header["values"],
            people=People(folder, vault or vault_root()) if has_people else {},
            options=header["options"],
            report=header["report"],
        )


def _destroy(secrets: Secrets | None) -> None:
    if secrets is not None:
        secrets.destroy_all()


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
