"""The state of the training of a loss network: its parameters, the step lengths, their optimizers, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..common.sgd_loop import cosine_schedule

if TYPE_CHECKING:
    from oneshui_hf.methods import ResumeState

LENGTH_LR = 0.05  # of the logarithm of a step length, for Adam
LENGTHS = "lengths"


class TrainingState:
    """The state after some meta-steps.

    Attributes:
        h: The loss network.
        log_lengths: Logarithms of the absolute step lengths, float64 (L,). Raw steps do not use them.
        history: One row per finished meta-step.
        curve: One row per evaluation on held-out identities.
        best: Parameters of h (by name) and `log_lengths` with the lowest objective on held-out identities; empty before an evaluation.
    """

    def __init__(self, h: nn.Module, lengths: torch.Tensor, lr: float) -> None:
        self.h, self.lr = h, lr
        self.log_lengths = lengths.to(torch.float64).log()
        self.history: list[dict[str, float]] = []
        self.curve: list[dict[str, float]] = []
        self.best: dict[str, torch.Tensor] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(h.parameters(), lr=lr, amsgrad=True),
            "adam": torch.optim.Adam([self.log_lengths], lr=LENGTH_LR),
        }

    @property
    def lengths(self) -> list[float]:
        """The step lengths (absolute)."""
        return self.log_lengths.exp().tolist()

    def step(self, by_phi: list[torch.Tensor], by_length: list[float], progress: float, normalised: bool) -> None:
        """Update h, and the lengths of normalised steps, by their gradients. Both rates follow half a cosine to 0.

        Args:
            by_phi: dA/dphi, in the order of `h.parameters()`.
            by_length: dA/dr for each length r.
            progress: The fraction of the meta-steps before this one.
            normalised: Whether steps are normalised.
        """
        for parameter, part in zip(self.h.parameters(), by_phi, strict=True):
            parameter.grad = part
        self.log_lengths.grad = torch.tensor(by_length, dtype=torch.float64) * self.log_lengths.exp()  # dA/dlog r = r dA/dr
        for name, rate in (("adamw", self.lr), ("adam", LENGTH_LR)):
            if name == "adamw" or normalised:
                self._optimizers[name].param_groups[0]["lr"] = cosine_schedule(rate, 0.0, progress)
                self._optimizers[name].step()

    def record_evaluation(self, objective: float) -> None:
        """Add the objective on held-out identities to the curve, and remember h and the lengths if it is the lowest."""
        if math.isfinite(objective) and all(objective < row["objective"] for row in self.curve):
            self.best = {name: part.clone() for name, part in self._trained().items()}
        self.curve.append({"step": len(self.history), "objective": objective})

    def kept_step(self, early_stopping: bool) -> int:
        """Return the number of meta-steps of the loss network that is kept: the best one on held-out identities, or the last."""
        return int(min(self.curve, key=lambda row: row["objective"])["step"]) if early_stopping else len(self.history)

    def restore_best(self) -> None:
        """Return to h and the lengths with the lowest objective on held-out identities."""
        self._load_trained(self.best)

    def _trained(self) -> dict[str, torch.Tensor]:
        return {**self.h.state_dict(), LENGTHS: self.log_lengths}

    def _load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.h.load_state_dict({name: part for name, part in tensors.items() if name != LENGTHS})
        self.log_lengths.copy_(tensors[LENGTHS])

    def save(self, resume_state: ResumeState) -> None:
        """Save the state."""
        parts = {"trained": self._trained(), "best": self.best}
        for name, optimizer in self._optimizers.items():
            by_parameter = optimizer.state_dict()["state"]
            parts[name] = {f"{index}/{key}": tensor for index, state in by_parameter.items() for key, tensor in state.items()}
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        resume_state.save(tensors, {"history": self.history, "curve": self.curve})

    def load(self, resume_state: ResumeState) -> None:
        """Continue from the saved state, if there is one."""
        found = resume_state.load()
        if found is None:
            return
        tensors, values = found
        parts: dict[str, dict[str, torch.Tensor]] = {"trained": {}, "best": {}, **{name: {} for name in self._optimizers}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self._load_trained(parts["trained"])
        device = next(self.h.parameters()).device
        self.best = {name: part if name == LENGTHS else part.to(device) for name, part in parts["best"].items()}
        for name, optimizer in self._optimizers.items():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, tensor in parts[name].items():
                index, _, entry = key.partition("/")
                state.setdefault(int(index), {})[entry] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.history, self.curve = values["history"], values["curve"]
