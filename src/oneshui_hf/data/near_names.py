"""Finds the file that a table means by a name that does not exist: other separators, %20, another case, another folder or suffix."""

from __future__ import annotations

import posixpath
import unicodedata
import urllib.parse
from collections.abc import Iterable, Sequence
from functools import cached_property


class NearNames:
    """Files by simplified names. A name is compared as a path, then without its suffix, its folder, or both."""

    def __init__(self, files: Iterable[str]) -> None:
        self._files = sorted(files)

    def find(self, name: str) -> str | None:
        """Return the only file that is close to a name, or None."""
        for number, key in enumerate(_keys(name)):
            found = self._by_key[number].get(key, [])
            if len(found) == 1:
                return found[0]
        return None

    @cached_property
    def _by_key(self) -> list[dict[str, list[str]]]:
        indexes: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        for file in self._files:
            for index, key in zip(indexes, _keys(file), strict=True):
                index.setdefault(key, []).append(file)
        return indexes


def _keys(name: str) -> tuple[str, str, str, str]:
    name = unicodedata.normalize("NFC", urllib.parse.unquote(name)).strip()
    path = posixpath.normpath(name.replace("\\", "/")).casefold()
    stem = posixpath.splitext(path)[0]
    return path, stem, posixpath.basename(path), posixpath.basename(stem)


def describe_near_names(missing: Sequence[str], files: Iterable[str]) -> str | None:
    """Return a sentence that names the file that is probably meant by a missing one; None if there is none.

    Args:
        missing: Names of files that do not exist.
        files: The existing files that no other name means.
    """
    near = NearNames(files)
    found = [(name, file) for name in missing if (file := near.find(name))]
    if not found:
        return None
    name, file = found[0]
    more = f" ({len(found):,} such names)" if len(found) > 1 else ""
    return f"'{name}' does not exist, but '{file}' does{more}; write the names as the files have them, with / between folders."
