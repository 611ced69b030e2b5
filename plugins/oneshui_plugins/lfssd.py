"""LFSSD, loss-free selective synaptic dampening: SSD with an importance that needs no labels.

Foster, Schoepf, Brintrup: "Loss-Free Machine Unlearning", 2024 (arXiv 2402.19308). The paper replaces the Fisher information by the
gradient of the squared L2 norm of the model's output, the sensitivity of memory aware synapses (Aljundi et al. 2018). The
definition used here is

    I_i = 1/n sum_x |d ||f(x)||_2^2 / d theta_i|

with f(x) the logits, before sigmoid or softmax, and the absolute value taken per photo. It is not squared, so a ratio of importances
is about the square root of the ratio in SSD.
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
    """Options of LFSSD: those of SSD with other defaults."""

    dampening: float = option(
        1.0,
        "Factor lambda: a selected parameter is scaled by lambda * I_train / I_support, at most 1.",
        minimum=0,
        at="apply",
        search=(0.01, 10.0),
    )
    selection: float = option(
        3.5,
        "Threshold alpha: a parameter is selected if I_support > alpha * I_train; the paper uses 3.5 to 10.",
        minimum=0,
        at="apply",
        search=(0.5, 100.0),
    )


class LFSSD(SSD):
    """Dampening by the sensitivity of the output."""

    summary = "dampens like ssd but needs no labels: importance is the sensitivity of the output's norm, not of the loss"
    paper = "Foster et al., Loss-Free Machine Unlearning, arXiv 2402.19308"
    options = LFSSDOptions
    presets = ("oneshui_plugins.presets", "lfssd.json")

    power = 1

    @staticmethod
    def per_image_value(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
        """Return the quantity that is differentiated for each photo, (n,): the squared norm of its logits."""
        return logits.square().sum(dim=1)
