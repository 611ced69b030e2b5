"""The method under test: how it is found, prepared and applied, and which data it reads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from ..errors import UsageError, did_you_mean
from ..methods.artefact import Artefact
from ..methods.base import DataAccess, Method
from ..options import fields, parse_words, resolve
from ..plugins import METHODS, Plugins
from .toy_problem import SEED, ToyProblem


@dataclasses.dataclass(frozen=True)
class Subject:
    """A method under test, with its options.

    Attributes:
        spec: Name of an installed method, or MODULE:CLASS.
        method: The class.
        words: The options, as KEY=VALUE.
    """

    spec: str
    method: type[Method[Any]]
    words: tuple[str, ...]

    @classmethod
    def load(cls, spec: str, words: Sequence[str] = ()) -> Subject:
        """Find a method.

        Raises:
            UsageError: No method of this name is installed, there is no such module or class, or the module cannot be imported.
            OneshuiError: The installed method cannot be loaded.
        """
        method = _import_class(spec) if ":" in spec else Plugins(METHODS).load(spec)
        return cls(spec, method, tuple(words))

    def check_options(self) -> None:
        """Check that the method has the given options, and that their values are valid.

        Raises:
            UsageError: One is unknown or invalid.
        """
        if given := self._given_options(("prepare", "apply")):
            resolve(self.method.options, given, f"method '{self.spec}'")

    def with_options(self, **values: object) -> Subject:
        """Return the same method with additional options."""
        return dataclasses.replace(self, words=(*self.words, *(f"{name}={value}" for name, value in values.items())))

    def _given_options(self, at: Sequence[str]) -> dict[str, Any]:
        values = parse_words([f"--{word}" for word in self.words], self.method.options, f"method '{self.spec}'")
        known = fields(self.method.options)
        return {name: value for name, value in values.items() if known[name].metadata["at"] in at}

    def prepare(self, problem: ToyProblem, *, model: torch.nn.Module | None = None, data: Any = None) -> Artefact | None:
        """Return what the method prepares; None if it prepares nothing."""
        if self.method.prepares == "never":
            return None
        options = self.method.prepare_options(self.spec, {}, self._given_options(("prepare", "apply")))
        data = data or DataAccess(problem.sets, self.method.needs.prepare)
        artefact = self.method().prepare(model or copy.deepcopy(problem.model), data, options, problem.context())
        artefact.options = dataclasses.asdict(options)
        return artefact

    def apply(
        self, problem: ToyProblem, artefact: Artefact | None, *, seed: int = SEED, model: torch.nn.Module | None = None, data: Any = None
    ) -> torch.nn.Module:
        """Return the model after the method has unlearned the request of the toy problem."""
        prepared = artefact.options if artefact else {}
        options = self.method.apply_options(self.spec, prepared, self._given_options(("apply",) if prepared else ("prepare", "apply")))
        data = data or DataAccess({**problem.sets, "support": problem.request}, self.method.needs.apply)
        return self.method().apply(model or copy.deepcopy(problem.model), data, artefact, options, problem.context(seed))


def _import_class(spec: str) -> type[Method[Any]]:
    """Return the class MODULE:CLASS."""
    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise UsageError(f"'{spec}' is not MODULE:CLASS with a module as in an import statement, such as my_package.my_module:MyMethod.")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # an import may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            reason = "it is neither installed nor in the current folder"
        else:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"Module '{module_name}' cannot be imported: {reason}.") from error
    method = getattr(module, name, None)
    if not isinstance(method, type):
        known = [key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module_name]
        raise UsageError(f"Module '{module_name}' has no class '{name}'.{did_you_mean(name, known)}")
    if not issubclass(method, Method):
        raise UsageError(f"Class '{name}' of module '{module_name}' is no method; derive it from oneshui_hf.methods.Method.")
    return method


class RecordingDataAccess(DataAccess):
    """Data access that records which sets were refused, also if the method suppresses the error."""

    def __init__(self, problem: ToyProblem, declared: frozenset[str]) -> None:
        super().__init__({**problem.sets, "support": problem.request}, declared)
        self.refused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except Exception:
            if not name.startswith("_"):
                self.refused.append(name)
            raise


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
