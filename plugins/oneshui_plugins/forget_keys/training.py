"""Training of keys: those of many identities at once, in random groups like those in which they may be requested.

Each step trains the keys of a random group of n identities. With their updates the model shall predict for the group's photos what it would
predict for photos of unseen identities (`target_logits`), and for photos of all others and of unseen identities what it predicted before:

    L = sum_{p of the group} mean_{x of p} KL(target(x) || f(x))  +  preservation_weight * n * mean_{x of others} KL(f_0(x) || f(x))

with f the model with the updates of all n identities. The size of the group differs from step to step, so that keys are trained alone and
together, and the objective covers the sum of any of them. A forget photo has a gradient for its own identity's key alone (`gradient_mask`),
a photo of others for all keys: which identity is forgotten is specific to each key, the cost for the others is shared.

Each key has its own Adam state, which counts that identity's steps. At the end it is multiplied by the factor that its identity needs
(`rescaling`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import Context, OneshuiError

from ..common.input_covariance import Layer
from ..common.kl import kl_divergence
from ..common.sgd_loop import cosine_schedule
from .batches import Batch, TrainingData, load_pixel_values
from .inference import logits_with_adapters
from .initialization import initialize
from .low_rank import LowRankUpdate, Updates, scale_updates, select_identities, with_adapters
from .preconditioner import Preconditioner, estimate_preconditioner
from .quantization import QuantizedKey, Shapes, quantize
from .rescaling import rescaling_factors

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, ResumeState

BETAS = (0.9, 0.99)  # of Adam; an identity has few steps, so the second is smaller than usual
EPSILON = 1e-8
LR_FACTORS = {"up": 1.0, "down": 10.0}  # V grows from zero, while R, whose rows have norm 1, rotates by as much in a step


def objective_gradient(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    updates: Updates,
    batch: Batch,
    target_logits: torch.Tensor,
    chunk: int,
    context: Context,
) -> tuple[float, Updates]:
    """Return the objective of a step, and its gradient with regard to the group's updates. Processes share the passes.

    Args:
        model: The original model; its weights are frozen.
        layers: The layers that use each weight.
        updates: Of the n identities of the group.
        batch: The photos.
        target_logits: Of each photo, (photos, K).
        chunk: Photos per pass.
        context: For the processes.

    Raises:
        OneshuiError: The objective is not finite.
    """
    accelerator, device = context.accelerator, context.device
    leaves = {name: LowRankUpdate(u.up.clone().requires_grad_(), u.down.clone().requires_grad_()) for name, u in updates.items()}
    total = torch.zeros((), dtype=torch.float64, device=device)
    for faces, positions, rows in context.local_share(_split_batch(batch, chunk)):
        pixels = load_pixel_values(faces, positions, batch.mirrored[rows], device)
        with with_adapters(layers, leaves, batch.gradient_mask[rows].to(device)):
            logits = model(pixel_values=pixels).logits
        losses = kl_divergence(target_logits[rows].to(device), logits, context.task.kind)  # (photos,)
        objective = (losses * batch.weight[rows].to(device)).sum()
        objective.backward()
        total += objective.detach()
    value = float(accelerator.reduce(total, "sum"))
    if not math.isfinite(value):
        raise OneshuiError("The training of the keys diverged: the objective is no longer finite. Use a smaller --lr.")

    def reduced(leaf: torch.Tensor) -> torch.Tensor:
        """A process without a photo of this step has no gradient."""
        return accelerator.reduce(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, "sum")

    return value, {name: LowRankUpdate(reduced(u.up), reduced(u.down)) for name, u in leaves.items()}


def _split_batch(batch: Batch, chunk: int) -> list[tuple[FaceSet, torch.Tensor, slice]]:
    """Return the passes of a step: a set, positions in it, and their rows in the batch."""
    passes, first = [], 0
    for faces, positions in batch.photos:
        for some in positions.split(chunk):
            passes.append((faces, some, slice(first, first + len(some))))
            first += len(some)
    return passes


class PerIdentityAdam:
    """Adam for the updates of a cohort, of which a step trains some: each identity has its own step count.

    Attributes:
        updates: V and R of the whole cohort; updated in place.
        steps: Steps of each identity, (P,).
    """

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.first = {name: LowRankUpdate(torch.zeros_like(u.up), torch.zeros_like(u.down)) for name, u in updates.items()}
        self.second = {name: LowRankUpdate(torch.zeros_like(u.up), torch.zeros_like(u.down)) for name, u in updates.items()}
        self.steps = torch.zeros(len(next(iter(updates.values())).up), dtype=torch.int64)

    def mean_size(self, part: str) -> float:
        """Return the number of entries of an identity's V ("up") or R ("down"), mean over the weights."""
        sizes = [getattr(update, part)[0].numel() for update in self.updates.values()]
        return sum(sizes) / len(sizes)

    def step(self, group: list[int], gradients: Updates, lr: float) -> None:
        """Update the V and R of a group (indices) by their gradients: V by about lr, R by about ten times that, in the Frobenius norm."""
        self.steps[group] += 1
        count = self.steps[group].view(-1, 1, 1)
        first_correction, second_correction = (1 - beta**count for beta in BETAS)
        rates = {part: factor * lr / math.sqrt(self.mean_size(part)) for part, factor in LR_FACTORS.items()}
        for name, gradient in gradients.items():
            for part, rate in rates.items():
                g = getattr(gradient, part)
                parameter, first, second = (getattr(tensors[name], part) for tensors in (self.updates, self.first, self.second))
                first[group] = torch.lerp(g, first[group], BETAS[0])
                second[group] = torch.lerp(g * g, second[group], BETAS[1])
                mean, square = first[group] / first_correction.to(g), second[group] / second_correction.to(g)
                parameter[group] -= rate * mean / (square.sqrt() + EPSILON)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name."""
        parts = {"keys": self.updates, "first": self.first, "second": self.second}
        tensors = {
            f"{part}/{side}/{name}": getattr(u, side)
            for part, updates in parts.items()
            for name, u in updates.items()
            for side in LR_FACTORS
        }
        return tensors | {"steps": self.steps}

    @staticmethod
    def count(shapes: Shapes, rank: int, identities: int) -> int:
        """Return how many numbers `state` has for so many identities, without their step counts."""
        return 3 * identities * sum(rank * (out + d) for out, d in shapes.values())

    @classmethod
    def from_state(cls, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> PerIdentityAdam:
        """Restore what `state` returned, for weights in this order."""

        def load(part: str) -> Updates:
            return {name: LowRankUpdate(*(tensors[f"{part}/{side}/{name}"] for side in LR_FACTORS)) for name in names}

        adam = cls(load("keys"))
        adam.first, adam.second, adam.steps = load("first"), load("second"), tensors["steps"]
        return adam


@dataclass(frozen=True)
class Step:
    """One training step.

    Attributes:
        number: Its place in the plan.
        cohort: Numbers of the identities whose keys are trained concurrently.
        group: The identities of this step, as indices into the cohort.
        progress: The fraction of the cohort's steps before this one, from 0 to below 1.
        is_last: Whether it is the cohort's last step.
    """

    number: int
    cohort: tuple[int, ...]
    group: list[int]
    progress: float
    is_last: bool


def plan_steps(data: TrainingData, identities: Sequence[int]) -> list[Step]:
    """Return all steps, cohort by cohort."""
    size = data.options.cohort_size
    steps: list[Step] = []
    for first in range(0, len(identities), size):
        cohort = tuple(identities[first : first + size])
        groups = data.sample_groups(cohort, data.options.steps_per_identity, "groups")
        start = len(steps)
        steps += [Step(start + i, cohort, group, i / len(groups), i + 1 == len(groups)) for i, group in enumerate(groups)]
    return steps


def train_updates(
    model: nn.Module, layers: Mapping[str, list[Layer]], data: TrainingData, identities: Sequence[int], context: Context
) -> tuple[dict[int, QuantizedKey], list[dict[str, float]]]:
    """Train the keys of identities (by number); return each one's quantized key, and the measurements of every step.

    Continues an interrupted training if the context has its state. If there are as many cohorts as processes, each process trains its share
    of the cohorts, alone; otherwise the processes share the photos of each step.
    """
    steps, preconditioner = plan_steps(data, identities), estimate_preconditioner(model, layers, data, context)
    cohorts = list(dict.fromkeys(step.cohort for step in steps))
    if len(cohorts) < context.accelerator.num_processes or context.accelerator.num_processes == 1:
        return _train_steps(model, layers, data, steps, preconditioner, context)
    own = set(context.local_share(cohorts))
    own_steps = [step for step in steps if step.cohort in own]
    own_keys, own_history = _train_steps(model, layers, data, own_steps, preconditioner, context.alone("cohorts"))
    keys = dict(context.gather(list(own_keys.items())))
    history = dict(context.gather([(step.number, row) for step, row in zip(own_steps, own_history, strict=True)]))
    return {identity: keys[identity] for identity in identities}, [history[step.number] for step in steps]


def _train_steps(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    data: TrainingData,
    steps: Sequence[Step],
    preconditioner: Preconditioner,
    context: Context,
) -> tuple[dict[int, QuantizedKey], list[dict[str, float]]]:
    """Train the keys of some cohorts, whose steps these are; see `train_updates`."""
    options, resume_state = data.options, context.resume_state
    state = TrainingState.load(resume_state, list(layers)) or TrainingState()
    with resume_state.stoppable():
        for step in context.reporter.track(steps[len(state.history) :], "Training the keys", len(steps) - len(state.history)):
            if state.adam is None:
                state.adam = PerIdentityAdam(initialize(model, layers, data, step.cohort, preconditioner, context))
            batch = data.sample_batch(step.number, [step.cohort[index] for index in step.group])
            updates = preconditioner.apply(select_identities(state.adam.updates, step.group))
            mirrored = batch.mirrored[: len(batch.forget)]
            logits = logits_with_adapters(model, layers, updates, data.train, batch.forget, mirrored, options.chunk, context)
            target_logits = torch.cat([data.target_logits(batch.forget, logits, mirrored), batch.preserved_logits])
            objective, gradients = objective_gradient(model, layers, updates, batch, target_logits, options.chunk, context)
            state.adam.step(step.group, preconditioner.apply(gradients), cosine_schedule(options.lr, 0.0, step.progress))
            state.history.append({"people": len(step.group), "objective": objective / len(step.group)})
            context.reporter.metrics({"prepare/objective": objective / len(step.group)}, len(state.history))
            if step.is_last:
                trained = preconditioner.apply(state.adam.updates)
                trained = scale_updates(trained, rescaling_factors(model, layers, trained, data, step.cohort, context))
                state.keys |= {identity: quantize(trained, index, options.bits) for index, identity in enumerate(step.cohort)}
                state.adam = None
            if resume_state.should_save():
                state.save(resume_state)
    return state.keys, state.history


@dataclass
class TrainingState:
    """The state of the training after some steps.

    Attributes:
        adam: V and R of the current cohort; None between cohorts.
        keys: The finished keys, by identity number.
        history: One row per finished step.
    """

    adam: PerIdentityAdam | None = None
    keys: dict[int, QuantizedKey] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, resume_state: ResumeState) -> None:
        """Save the state."""
        tensors = {f"codes/{identity}/{part}": tensor for identity, key in self.keys.items() for part, tensor in key.items()}
        if self.adam is not None:
            tensors |= {f"adam/{name}": tensor for name, tensor in self.adam.state().items()}
        resume_state.save(tensors, {"history": self.history})

    @classmethod
    def load(cls, resume_state: ResumeState, weights: list[str]) -> TrainingState | None:
        """Return the saved state, or None if there is none."""
        found = resume_state.load()
        if found is None:
            return None
        tensors, values = found
        state = cls(history=values["history"])
        adam = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "adam":
                adam[rest] = tensor
            else:
                identity, _, part = rest.partition("/")
                state.keys.setdefault(int(identity), {})[part] = tensor
        state.adam = PerIdentityAdam.from_state(adam, weights) if adam else None
        return state
