"""The methods that a photo can be tried with, those that are prepared first, each with one sentence on what it does and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import OneshuiError
from ..methods.base import Method, Situation
from ..plugins import METHODS, Plugins
from ..reporting import SILENT, Reporter
from ..runs import Run
from ..stages.method_choice import prepared_methods

COSTS: dict[Situation, str] = {
    "exact by design": "needs the identity, and a training that was made for it",
    "prepared by name": "needs the identity, and serves only people that it was prepared for",
    "photo alone": "needs only the photo, and predictions for others change, too",
    "training data": "reads training data",
    "baseline": "changes nothing",
}


@dataclass(frozen=True)
class Choice:
    """A method that a photo can be tried with.

    Attributes:
        name: Its name.
        prepared: Whether it was prepared for the model, or the training was its preparation.
        needs_identity: Whether it acts on an identity, which is named or found by the face.
        sentence: What it does and costs.
    """

    name: str
    prepared: bool
    needs_identity: bool
    sentence: str


def method_choices(run: Run, *, photo_alone: bool = False, reporter: Reporter = SILENT) -> list[Choice]:
    """Return the methods that need no data but the photo: the prepared ones in the order of choice, then the others by name.

    Args:
        run: The model.
        photo_alone: Leave out the methods that act on an identity.
        reporter: For warnings about preparations that cannot be used.
    """
    prepared = sorted(prepared_methods(run, reporter), key=lambda found: (found.rank is None, found.rank or 0, found.name))
    usable = [(found.name, found.method, True) for found in prepared if found.method.needs.one_shot]
    names = {name for name, _, _ in usable}
    usable += [(name, method, False) for name, method in _runnable(run) if name not in names]
    choices = [_choice(*found) for found in usable if not found[1].classes_only or run.task == "single_label"]
    return [choice for choice in choices if not (photo_alone and choice.needs_identity)]


def _runnable(run: Run) -> Iterator[tuple[str, type[Method[Any]]]]:
    """Yield the methods that read the photo and need no preparation, and no special training."""
    for name, method in Plugins(METHODS).loadable().items():
        special = method.sharded or method.closed_form or method.per_identity
        if method.needs.apply == {"support"} and method.prepares != "required" and not special:
            yield name, method


def _choice(name: str, method: type[Method[Any]], prepared: bool) -> Choice:
    summary = method.summary[0].upper() + method.summary[1:]
    return Choice(name, prepared, method.per_identity or method.exact, f"{summary}. Cost: {COSTS[method.situation()]}.")


def require_choice(choices: list[Choice], name: str | None) -> Choice:
    """Return the choice of this name.

    Raises:
        OneshuiError: There is none.
    """
    found = next((choice for choice in choices if choice.name == name), None)
    if found is None:
        raise OneshuiError("Choose a method first.")
    return found


def first_choice(choices: list[Choice], *, identity_known: bool) -> str | None:
    """Return the method that is chosen at first: the first prepared one that can be tried with what is known; None without methods."""
    usable = [choice for choice in choices if identity_known or not choice.needs_identity] or choices
    return usable[0].name if usable else None
