"""The method under check: how it is found, prepared and applied, and what it reads meanwhile."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from ..methods.artefact import Artefact
from ..methods.base import DataAccess, Method
from ..options import fields, parse_words
from ..plugins import METHODS, Plugins
from .toy_problem import SEED, World


@dataclasses.dataclass(frozen=True)
class Checked:
    """A method with the options that it is checked with.

    Attributes:
        spec: An installed method's name, or MODULE:CLASS.
        method: The class.
        words: The options, as KEY=VALUE.
    """

    spec: str
    method: type[Method[Any]]
    words: tuple[str, ...]

    @classmethod
    def load(cls, spec: str, words: Sequence[str] = ()) -> Checked:
        """Find a method.

        Raises:
            UsageError: There is none of that name.
        """
        module, colon, name = spec.partition(":")
        method = getattr(import_module(module), name) if colon else Plugins(METHODS).load(spec)
        return cls(spec, method, tuple(words))

    def with_options(self, **values: object) -> Checked:
        """Return the same method with further options."""
        return dataclasses.replace(self, words=(*self.words, *(f"{name}={value}" for name, value in values.items())))

    def _given(self, at: Sequence[str]) -> dict[str, Any]:
        values = parse_words([f"--{word}" for word in self.words], self.method.options, f"method '{self.spec}'")
        known = fields(self.method.options)
        return {name: value for name, value in values.items() if known[name].metadata["at"] in at}

    def prepare(self, world: World, *, model: torch.nn.Module | None = None, data: Any = None) -> Artefact | None:
        """Prepare the method, where it prepares anything."""
        if self.method.prepares == "never":
            return None
        options = self.method.prepare_options(self.spec, {}, self._given(("prepare", "apply")))
        data = data or DataAccess(world.sets, self.method.needs.prepare)
        artefact = self.method().prepare(model or copy.deepcopy(world.model), data, options, world.context())
        artefact.options = dataclasses.asdict(options)
        return artefact

    def apply(
        self, world: World, artefact: Artefact | None, *, seed: int = SEED, model: torch.nn.Module | None = None, data: Any = None
    ) -> torch.nn.Module:
        """Apply the method to the request of the world."""
        prepared = artefact.options if artefact else {}
        options = self.method.apply_options(self.spec, prepared, self._given(("apply",) if prepared else ("prepare", "apply")))
        data = data or DataAccess({**world.sets, "support": world.request}, self.method.needs.apply)
        return self.method().apply(model or copy.deepcopy(world.model), data, artefact, options, world.context(seed))


class Spied(DataAccess):
    """Data that keeps a list of what was refused, also where the refusal is swallowed."""

    def __init__(self, world: World, declared: frozenset[str]) -> None:
        super().__init__({**world.sets, "support": world.request}, declared)
        self.refused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except Exception:
            if not name.startswith("_"):
                self.refused.append(name)
            raise


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
