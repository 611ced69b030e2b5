"""Do nothing: return the original model. Every table needs this baseline, since doing nothing already scores well."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact


@dataclass(frozen=True)
class DoNothingOptions:
    """This method has no options."""


class DoNothing(Method[DoNothingOptions]):
    """Return the original model."""

    summary = "returns the original model unchanged: the baseline of every table"
    paper = "-"
    needs = Needs(apply=frozenset())
    options = DoNothingOptions

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: DoNothingOptions, context: Context
    ) -> nn.Module:
        """Return a copy."""
        return copy.deepcopy(model)
