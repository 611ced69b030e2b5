"""LFSSD, loss-free selective synaptic dampening: SSD with an importance that needs no labels.

Foster, Schoepf, Brintrup: "Loss-Free Machine Unlearning", 2024 (arXiv 2402.19308). The paper takes, in place of the Fisher information, the
gradient of the squared L2 norm of the model's output, a sensitivity known from memory aware synapses (Aljundi et al. 2018). The
definition used here is

    I_i = 1/n sum_x |d ||f(x)||_2^2 / d theta_i|

with f(x) the logits, before sigmoid or softmax, and the absolute value taken photo by photo. It is not squared, so a ratio of importances
here is about the root of what it is in SSD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import option

from .ssd import SSD, SSDOptions

if TYPE_CHECKING:
    import torch

    from oneshui_hf.methods import TaskKind


@dataclass(frozen=True)
class LFSSDOptions(SSDOptions):
    """Options of LFSSD: those of SSD, with defaults of its own."""

    dampening: float = option(
        1.0,
        "Factor (lambda) of the ratio of importances, training set to support, that a selected parameter shrinks to.",
        minimum=0,
        at="apply",
        search=(0.01, 10.0),
    )
    selection: float = option(
        3.5,
        "How many times as important as for the training set (alpha) a selected parameter is for the support; the paper has 3.5 to 10.",
        minimum=0,
        at="apply",
        search=(0.5, 100.0),
    )


class LFSSD(SSD):
    """Dampening by the sensitivity of the output."""

    summary = "ssd without labels: importance is the sensitivity of the output's length, not of the loss"
    paper = "Foster et al., Loss-Free Machine Unlearning, arXiv 2402.19308"
    options = LFSSDOptions
    presets = ("oneshui_plugins.presets", "lfssd.json")

    power = 1

    @staticmethod
    def value(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return what is differentiated for each photo, (n,): the squared length of its logits."""
        return logits.square().sum(dim=1)
