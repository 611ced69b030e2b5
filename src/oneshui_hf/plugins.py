"""Finding what is installed under an entry-point group, by metadata alone, and loading one by name.

Built-in methods and data sets are registered in the same way as anybody else's. Names are known without importing anything, so
`--help` stays fast and one broken plugin harms nothing but itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from .errors import OneshuiError, UsageError, did_you_mean

METHODS = "oneshui.methods"
DATASETS = "oneshui.datasets"
PARTS = ("summary", "needs")  # what every plugin says of itself


@dataclass(frozen=True)
class Plugins:
    """The plugins of one entry-point group. `ONESHUI_PLUGINS=a,b` keeps only those names."""

    group: str

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries())

    def _entries(self) -> dict[str, metadata.EntryPoint]:
        installed = list(metadata.entry_points(group=self.group))
        wanted = self._selected({entry.name for entry in installed})
        found: dict[str, metadata.EntryPoint] = {}
        for entry in installed:
            if entry.name not in wanted:
                continue
            other = found.get(entry.name)
            if other is not None and other.value != entry.value:
                raise OneshuiError(f"Two packages offer '{entry.name}': {_origin(other)} and {_origin(entry)}; uninstall one of them.")
            found[entry.name] = entry
        return found

    def _selected(self, installed: set[str]) -> set[str]:
        wanted = {name.strip() for name in os.environ.get("ONESHUI_PLUGINS", "").split(",") if name.strip()}
        if not wanted or self.group != METHODS:
            return installed
        for name in sorted(wanted - installed):
            raise UsageError(f"ONESHUI_PLUGINS names '{name}', which is not installed.{did_you_mean(name, installed)}")
        return wanted

    def origin(self, name: str) -> str:
        """Return the distribution that offers a name, with its version."""
        return _origin(self._entries()[name])

    def load(self, name: str) -> Any:
        """Import what a name stands for.

        Raises:
            UsageError: The name is unknown.
            OneshuiError: Its module cannot be imported, or holds no plugin; the message names its distribution.
        """
        entries = self._entries()
        if name not in entries:
            raise UsageError(f"There is no {self._word} '{name}'.{did_you_mean(name, entries)}")
        label = f"{self._word} '{name}' of {_origin(entries[name])}"
        try:
            plugin = entries[name].load()
        except (Exception, SystemExit) as error:  # a plugin may fail in any way at import; its name must reach the user
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise OneshuiError(f"{label} cannot be loaded: {reason}") from error
        if missing := [part for part in PARTS if not hasattr(plugin, part)]:
            raise OneshuiError(f"{label} is no {self._word}: {entries[name].value} has no {' and no '.join(missing)}.")
        return plugin

    @property
    def _word(self) -> str:
        return "method" if self.group == METHODS else "data set"

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per plugin: name, distribution, summary, what it needs; or why it is broken."""
        rows = []
        for name in self.names:
            row: dict[str, Any] = {"name": name, "from": self.origin(name)}
            try:
                plugin = self.load(name)
                row |= {"summary": plugin.summary, "needs": str(plugin.needs)}
            except OneshuiError as error:
                row["error"] = str(error)
            rows.append(row)
        return rows


def _origin(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
