"""What a method prepares, on disk: tensors in safetensors, the rest in JSON, bound to the model that it was made for.

methods/<name>/artefact.json           options, report, binding
methods/<name>/artefact.safetensors
methods/<name>/private.json            what concerns single people (identity keys); never published
methods/<name>/private.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError
from ..runs import dump_json, new_folder, read_object, versions, write_bytes

if TYPE_CHECKING:
    import torch

PUBLIC, PRIVATE = "artefact", "private"
FORMAT = 1
PARTS = {"weights": str, "values": dict, "options": dict, "report": dict}  # of the header, beside format and method


@dataclass
class Artefact:
    """A method's preparation.

    Attributes:
        tensors: What `apply` reads.
        values: What `apply` reads, as JSON.
        private_tensors: The same, concerning single people: used where it is present, never published.
        private_values: The same, as JSON.
        options: The options that it was prepared with.
        report: What is known of the preparation.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    private_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    private_values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, method: str, weights: str, *, replace: bool) -> None:
        """Write the folder, bound to the model with these weights."""
        from safetensors.torch import save

        header = {"format": FORMAT, "method": method, "weights": weights, "versions": versions()}
        public = header | {"options": self.options, "values": self.values, "report": self.report}
        with new_folder(folder, replace=replace) as scratch:
            write_bytes(scratch / f"{PUBLIC}.json", dump_json(public))
            write_bytes(scratch / f"{PUBLIC}.safetensors", save(_plain(self.tensors)))
            if self.private_tensors or self.private_values:
                write_bytes(scratch / f"{PRIVATE}.json", dump_json(self.private_values))
                write_bytes(scratch / f"{PRIVATE}.safetensors", save(_plain(self.private_tensors)))

    @classmethod
    def load(cls, folder: Path, method: str, weights: str, *, force: bool = False) -> Artefact:
        """Read a folder.

        Args:
            folder: Where it lies.
            method: The method that asks for it.
            weights: The hash of the model that it will be applied to.
            force: Accept another model's artefact.

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
        try:
            tensors = load_file(folder / f"{PUBLIC}.safetensors")
            private = folder / f"{PRIVATE}.safetensors"
            private_tensors = load_file(private) if private.exists() else {}
        except (SafetensorError, OSError) as error:
            raise OneshuiError(f"{folder} is damaged ({error}); prepare again.") from None
        private_file = folder / f"{PRIVATE}.json"
        return cls(
            tensors=tensors,
            values=header["values"],
            private_tensors=private_tensors,
            private_values=read_object(private_file) if private_file.exists() else {},
            options=header["options"],
            report=header["report"],
        )


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
