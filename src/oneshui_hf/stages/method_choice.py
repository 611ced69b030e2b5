"""The method of a request that names none. It is chosen by what the run has prepared, before the model is loaded.

Exact methods come first, then methods that were prepared for each identity, then the default method. Of several, one with an artefact is
taken before one without, and then the first by name. Training with `--sharded` is the preparation of exact methods for sharded models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, UsageError
from ..methods.base import Method
from ..options import field_name, flag, names, resolve
from ..plugins import METHODS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import METHODS as ARTEFACTS
from ..runs import Run
from .command_options import DEFAULT_METHOD, UnlearnOptions


@dataclasses.dataclass(frozen=True)
class PreparedMethod:
    """A method that can be applied to a run without further preparation.

    Attributes:
        name: Its name.
        method: Its class.
        owner: The run that has its artefact: the run itself or an ancestor. None if the way the model was trained is the preparation.
    """

    name: str
    method: type[Method[Any]]
    owner: Path | None

    @property
    def rank(self) -> int | None:
        """The place in the order of choice, 0 first; None if the method must be named."""
        if not self.method.needs.one_shot:
            return None
        if self.method.exact:
            return 0
        if self.method.per_identity:
            return 1
        return 2 if self.name == DEFAULT_METHOD else None


def with_method(run: Run, options: UnlearnOptions, given: Mapping[str, Any] | None = None, reporter: Reporter = SILENT) -> UnlearnOptions:
    """Return the options of a request with the method that it names, or else with the chosen one, which is printed.

    Args:
        run: The model.
        options: The request.
        given: Options of the method, which only a request that names it may give.
        reporter: Receives the choice.

    Raises:
        UsageError: No prepared method is one that is chosen, or an option of a method is given without naming the method.
    """
    if options.method is not None:
        return options
    refuse_method_options(given or ())
    resolve(UnlearnOptions, given or {}, "unlearn")  # what is left is unknown
    name = _choose(run, reporter)
    return dataclasses.replace(options, method=name)


def refuse_method_options(given: Iterable[str]) -> None:
    """Refuse the options of a method where no method is named: the same option can mean another thing in another method.

    Raises:
        UsageError: One of these names is an option of a method.
    """
    spellings = dict.fromkeys(map(field_name, given))
    methods = Plugins(METHODS).loadable() if spellings else {}
    for spelling in spellings:
        if owners := [name for name, method in methods.items() if spelling in names(method.options)]:
            raise UsageError(f"{flag(spelling)} is an option of {_listed(owners)}; name the method with --method.")


def nearest_prepared_run(run: Run, name: str, method: type[Method[Any]]) -> Run:
    """Return the run with the method's artefact.

    It is this run; for a sequential method also its nearest ancestor, if all runs in between were unlearned by the method. If none has an
    artefact, this run is returned, so that the error message names it.

    Raises:
        UsageError: A run in between was moved or has changed.
    """
    found = run
    while method.sequential and not found.artefact(name).is_dir():
        parent = found.record.parent or {}
        if found.record.kind != "unlearned" or found.record.report.get("method") != name or "run" not in parent:
            return run
        path = Path(str(parent["run"]))
        if not path.is_dir() or Run.open(path).weights != parent.get("weights"):
            raise UsageError(
                f"{found.path} was computed from {path}, which is missing or has changed, so the artefact of '{name}' cannot be found."
            )
        found = Run.open(path)
    return found


def _choose(run: Run, reporter: Reporter) -> str:
    """Return the first of the prepared methods, and print which it is and what else could be named."""
    prepared = list(prepared_methods(run, reporter))
    choices = sorted((found.rank, found.owner is None, found.name, found) for found in prepared if found.rank is not None)
    if not choices:
        state = f"No method has been prepared for {run.path}; name one that needs no preparation with --method"
        if prepared:
            named = _listed([found.name for found in prepared])
            state = f"{run.path} has prepared {named}, which must be named with --method"
        raise UsageError(f"{state}, or run `oneshui prepare` first, while training data exists.")
    chosen = choices[0][-1]
    others = [found.name for found in prepared if found is not chosen]
    reason = "trained with --sharded" if chosen.owner is None else f"prepared for {chosen.owner}"
    also = f" Also possible with --method: {', '.join(others)}." if others else ""
    reporter.note(f"Method {chosen.name} ({chosen.method.situation()}): {reason}.{also}")
    return chosen.name


def prepared_methods(run: Run, reporter: Reporter) -> Iterator[PreparedMethod]:
    """Yield the methods that can be applied to a run at once. Warn about methods that are prepared and cannot be loaded."""
    folders = {folder.name for folder in (run.path / ARTEFACTS).glob("[!.]*/")}
    maker = str(run.record.report.get("method")) if run.record.kind == "unlearned" else None
    is_sharded, installed = bool(run.record.options.get("sharded")), Plugins(METHODS).names
    for name in sorted(folders - set(installed)):
        reporter.warn(f"The preparation of '{name}' for {run.path} is not used: there is no such method, or ONESHUI_PLUGINS leaves it out.")
    for name in installed:
        if not (is_sharded or name in folders or name == maker):  # loading a method may take time
            continue
        try:
            method: type[Method[Any]] = Plugins(METHODS).load(name)
        except OneshuiError as error:
            if name in folders or name == maker:
                reporter.warn(f"The preparation of '{name}' for {run.path} is not used: {error}")
            continue
        owner = nearest_prepared_run(run, name, method)
        has_artefact = method.prepares != "never" and owner.artefact(name).is_dir()
        if has_artefact or (is_sharded and method.sharded and method.exact and method.prepares != "required"):
            yield PreparedMethod(name, method, owner.path if has_artefact else None)


def _listed(found: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))
