"""What a method's call at a request needs besides the photos: its artefact, its options, and the facts for the receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..methods.artefact import Artefact
from ..methods.base import Method
from ..methods.requests import Request
from ..options import current_names, flag
from ..plugins import METHODS, Plugins
from ..reporting import Reporter
from ..runs import Run
from .command_options import UnlearnOptions
from .presets import preset_values, values_for_step


def preset_values_at_request(
    run: Run, method_class: type[Method[Any]], options: UnlearnOptions, artefact: Artefact | None, reporter: Reporter
) -> dict[str, Any]:
    """Return the preset values that `apply` reads. Warn about values that `prepare` reads and that differ from the artefact's options."""
    name = options.method_name
    values = preset_values(run, name, method_class, options.preset, reporter)
    used = values_for_step(method_class, values, "apply")
    prepared = artefact.options if artefact else {}
    if ignored := [flag(key) for key, value in values.items() if key not in used and (artefact is None or prepared.get(key) != value)]:
        reason = "was prepared with other values" if artefact else "is not prepared"
        reporter.warn(
            f"Method '{name}' {reason}, and the preset's {', '.join(ignored)} apply to preparation only, so they are ignored; "
            f"`oneshui prepare --preset {options.preset}` uses them."
        )
    return used


def load_artefact(owner: Run, method_class: type[Method[Any]], options: UnlearnOptions, folder: Path, vault: Path) -> Artefact | None:
    """Return the artefact of a run's model with its options under their current names; None if the method runs without one."""
    if method_class.prepares == "never" or (method_class.prepares == "optional" and not folder.exists()):
        return None
    artefact = Artefact.load(folder, options.method_name, owner.weights, force=options.force, vault=vault)
    artefact.options = current_names(method_class.options, artefact.options)
    return artefact


def receipt(options: UnlearnOptions, method_class: type[Method[Any]], request: Request) -> dict[str, Any]:
    """Return the stored facts of a request: numbers and settings, never a name."""
    named = {person for person in request.people if person is not None}
    unnamed = request.people.count(None)
    return {
        "method": options.method_name,
        "method_from": Plugins(METHODS).origin(options.method_name),
        "photos": len(request),
        # Several photos without a name may show one person or several, so their number is unknown.
        "people": len(named) + unnamed if unnamed <= 1 else None,
        "labels": "given" if request.labels_given else "guessed by the model",
        "reads": sorted(method_class.needs.apply),
        "source": "split" if options.from_split else "request",
        "forced": options.force,
    }
