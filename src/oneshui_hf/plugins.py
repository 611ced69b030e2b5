"""Plugins of an entry-point group: list them from metadata alone, and load one by name.

Built-in methods and data sets are registered in the same way as third-party ones. Names are read without importing anything, so
`--help` stays fast and a broken plugin does not affect the others.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .errors import OneshuiError, UsageError, did_you_mean

METHODS = "oneshui.methods"
DATASETS = "oneshui.datasets"
REQUIRED_ATTRIBUTES = {METHODS: ("summary", "needs", "situation"), DATASETS: ("summary", "needs")}


@dataclass(frozen=True)
class Plugins:
    """The plugins of one entry-point group. `ONESHUI_PLUGINS=a,b` restricts methods to those names."""

    group: str

    @property
    def names(self) -> list[str]:
        """All plugin names, sorted."""
        return sorted(self._entries())

    def _entries(self) -> dict[str, metadata.EntryPoint]:
        installed = list(metadata.entry_points(group=self.group))
        selected = self._selected({entry.name for entry in installed})
        found: dict[str, metadata.EntryPoint] = {}
        for entry in installed:
            if entry.name not in selected:
                continue
            other = found.get(entry.name)
            if other is not None and other.value != entry.value:
                raise OneshuiError(f"Two packages provide '{entry.name}': {_origin(other)} and {_origin(entry)}; uninstall one of them.")
            found[entry.name] = entry
        return found

    def _selected(self, installed: set[str]) -> set[str]:
        selected = {name.strip() for name in os.environ.get("ONESHUI_PLUGINS", "").split(",") if name.strip()}
        if not selected or self.group != METHODS:
            return installed
        for name in sorted(selected - installed):
            raise UsageError(f"ONESHUI_PLUGINS names '{name}', which is not installed.{did_you_mean(name, installed)}")
        return selected

    def origin(self, name: str) -> str:
        """Return the distribution that provides a plugin, with its version."""
        return _origin(self._entries()[name])

    def load(self, name: str) -> Any:
        """Import a plugin.

        Raises:
            UsageError: The name is unknown.
            OneshuiError: Its module cannot be imported, or contains no plugin; the message names its distribution.
        """
        entries = self._entries()
        if name not in entries:
            raise UsageError(f"There is no {self._noun} '{name}'.{did_you_mean(name, entries)}")
        label = f"{self._noun} '{name}' of {_origin(entries[name])}"
        try:
            plugin = entries[name].load()
        except (Exception, SystemExit) as error:  # an import may raise anything; the user must see the plugin's name
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise OneshuiError(f"{label} cannot be loaded: {reason}") from error
        if missing := [attribute for attribute in REQUIRED_ATTRIBUTES[self.group] if not hasattr(plugin, attribute)]:
            raise OneshuiError(f"{label} is no {self._noun}: {entries[name].value} has no {' and no '.join(missing)}.")
        return plugin

    @property
    def _noun(self) -> str:
        return "method" if self.group == METHODS else "data set"

    def loadable(self) -> dict[str, Any]:
        """Return the plugins that can be loaded, by name."""
        found = {}
        for name in self.names:
            with contextlib.suppress(OneshuiError):
                found[name] = self.load(name)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per plugin: name, distribution, summary and needs (and a method's situation), or the error of loading it."""
        rows = []
        for name in self.names:
            row: dict[str, Any] = {"name": name, "from": self.origin(name)}
            try:
                plugin = self.load(name)
                row |= {"summary": plugin.summary, "needs": str(plugin.needs)}
                if self.group == METHODS:
                    row |= {"situation": plugin.situation(), "prepares": plugin.prepares}
            except OneshuiError as error:
                row["error"] = str(error)
            rows.append(row)
        return rows


def _origin(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
