"""A case of the drill, and its verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scenes import Scene, Stage

RIGHT, SENTENCE, FAILED = "right", "sentence", "failed"


@dataclass(frozen=True)
class Verdict:
    """How a case ended: with the right bytes, with one sentence, or failed; and the reason, or what was done."""

    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One case. It is drawn from a seed and can be repeated by its name."""

    kind: str
    command: str
    number: str
    check: Callable[[Stage, Case], Verdict]

    @property
    def name(self) -> str:
        """The name that `--case` takes."""
        return f"{self.command}:{self.number}"

    @property
    def scene(self) -> Scene:
        """The command under test."""
        from .scenes import BY_NAME

        return BY_NAME[self.command]
