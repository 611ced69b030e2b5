"""Learning forget keys: those of many people at once, tried in the company in which they may be used.

In each step some people ask together. Their keys are attached to the model, which shall then say of their photos what it would say of
strangers' (`strangers`), and of everybody else's, and of strangers', what it said before:

    L = sum_{p asks} mean_{x of p} KL(target(x) || f(x))  +  balance * n * mean_{x of others} KL(f_0(x) || f(x))

with f the model with the keys of all n who ask. The number that ask differs from step to step, so that keys are learned alone and in
company, and the sum of any of them is what was learned for. A forget photo is felt by its own person's key alone (`attached`), a photo of
the others by all: who shall be forgotten is each key's own business, what it costs the others is everybody's.

Each person's key has an Adam of its own, which counts that person's steps. At the end it is given the length that its person needs
(`lengths`).
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
from ..common.kl import divergence
from ..common.sgd_loop import cosine
from .batches import Lesson, Lessons, shown
from .inference import said_with
from .initialization import start
from .low_rank import Factors, Keys, attached, scaled, some_of
from .preconditioner import coordinates
from .quantization import Codes, encode
from .rescaling import lengths

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, Unfinished

BETAS = (0.9, 0.99)  # of Adam; a person takes few steps, so the second is shorter than usual
TINY = 1e-8
PACES = {"up": 1.0, "down": 10.0}  # V grows from nothing, while R, whose rows have a length of 1, turns by as much in a step


def gradient(
    model: nn.Module,
    layers: Mapping[str, list[Layer]],
    keys: Keys,
    lesson: Lesson,
    wanted: torch.Tensor,
    chunk: int,
    context: Context,
) -> tuple[float, Keys]:
    """Return the objective of a step, and its gradient with regard to the keys of those who ask. Processes share the passes.

    Args:
        model: The original model; its own weights take no gradient.
        layers: Where keys are attached.
        keys: Of those who ask, n a weight.
        lesson: The photos.
        wanted: What the model shall say of them, logits (photos, K).
        chunk: Photos a pass.
        context: For the processes.

    Raises:
        OneshuiError: The objective is not finite.
    """
    accelerator, device = context.accelerator, context.device
    leaves = {name: Factors(f.up.clone().requires_grad_(), f.down.clone().requires_grad_()) for name, f in keys.items()}
    total = torch.zeros((), dtype=torch.float64, device=device)
    for faces, positions, rows in context.mine(_passes(lesson, chunk)):
        pixels = shown(faces, positions, lesson.mirrored[rows], device)
        with attached(layers, leaves, lesson.own[rows].to(device)):
            logits = model(pixel_values=pixels).logits
        far = divergence(wanted[rows].to(device), logits, context.task.kind)  # (photos,)
        objective = (far * lesson.weight[rows].to(device)).sum()
        objective.backward()
        total += objective.detach()
    value = float(accelerator.reduce(total, "sum"))
    if not math.isfinite(value):
        raise OneshuiError("Learning the keys diverged: the objective is no longer finite; try a smaller --lr.")

    def summed(leaf: torch.Tensor) -> torch.Tensor:
        """A process may have had no photo of this step."""
        return accelerator.reduce(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, "sum")

    return value, {name: Factors(summed(f.up), summed(f.down)) for name, f in leaves.items()}


def _passes(lesson: Lesson, chunk: int) -> list[tuple[FaceSet, torch.Tensor, slice]]:
    """Return the passes of a step: a set, positions in it, and which rows of the lesson they are."""
    passes, first = [], 0
    for faces, positions in lesson.photos:
        for some in positions.split(chunk):
            passes.append((faces, some, slice(first, first + len(some))))
            first += len(some)
    return passes


class Adam:
    """Adam for many people's keys, of which a step touches some: each person's has its own count of steps.

    Attributes:
        keys: V and R of the whole cohort; updated in place.
        steps: How many each person has taken, (P,).
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.first = {name: Factors(torch.zeros_like(f.up), torch.zeros_like(f.down)) for name, f in keys.items()}
        self.second = {name: Factors(torch.zeros_like(f.up), torch.zeros_like(f.down)) for name, f in keys.items()}
        self.steps = torch.zeros(len(next(iter(keys.values())).up), dtype=torch.int64)

    def numbers(self, part: str) -> float:
        """Return how many numbers V or R of a person has, mean over the weights."""
        sizes = [getattr(factors, part)[0].numel() for factors in self.keys.values()]
        return sum(sizes) / len(sizes)

    def step(self, people: list[int], gradients: Keys, lr: float) -> None:
        """Move the keys of some people along their gradients, V by about lr and R by about ten times that, in the Frobenius norm."""
        self.steps[people] += 1
        count = self.steps[people].view(-1, 1, 1)
        fade, slow = (1 - beta**count for beta in BETAS)
        rates = {part: pace * lr / math.sqrt(self.numbers(part)) for part, pace in PACES.items()}
        for name, gradient in gradients.items():
            for part, rate in rates.items():
                g = getattr(gradient, part)
                key, first, second = (getattr(place[name], part) for place in (self.keys, self.first, self.second))
                first[people] = torch.lerp(g, first[people], BETAS[0])
                second[people] = torch.lerp(g * g, second[people], BETAS[1])
                key[people] -= rate * (first[people] / fade.to(g)) / ((second[people] / slow.to(g)).sqrt() + TINY)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that it holds, by name."""
        parts = {"keys": self.keys, "first": self.first, "second": self.second}
        tensors = {f"{part}/{way}/{name}": getattr(f, way) for part, keys in parts.items() for name, f in keys.items() for way in PACES}
        return tensors | {"steps": self.steps}

    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> Adam:
        """Return what was saved by `state`, of weights in this order."""

        def keys(part: str) -> Keys:
            return {name: Factors(*(tensors[f"{part}/{way}/{name}"] for way in PACES)) for name in names}

        adam = cls(keys("keys"))
        adam.first, adam.second, adam.steps = keys("first"), keys("second"), tensors["steps"]
        return adam


@dataclass(frozen=True)
class Step:
    """One step of learning.

    Attributes:
        cohort: Identity numbers of those whose keys are learned at the same time.
        group: Who of them ask, as places in the cohort.
        done: The share of the cohort's steps that come before, from 0 to below 1.
        last: Whether it is the cohort's last.
    """

    cohort: tuple[int, ...]
    group: list[int]
    done: float
    last: bool


def plan(lessons: Lessons, people: Sequence[int]) -> list[Step]:
    """Return all steps, cohort by cohort."""
    steps = []
    for first in range(0, len(people), lessons.options.cohort):
        cohort = tuple(people[first : first + lessons.options.cohort])
        groups = lessons.groups(cohort, lessons.options.visits, "groups")
        steps += [Step(cohort, group, i / len(groups), i + 1 == len(groups)) for i, group in enumerate(groups)]
    return steps


def learn(
    model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, people: Sequence[int], context: Context
) -> tuple[dict[int, Codes], list[dict[str, float]]]:
    """Learn the keys of people (identity numbers); return each one's codes, and what was measured in every step.

    Goes on where it was interrupted, if the context remembers.
    """
    options, unfinished = lessons.options, context.unfinished
    steps, space = plan(lessons, people), coordinates(model, layers, lessons, context)
    state = State.load(unfinished, list(layers)) or State()
    for step in context.reporter.track(steps[len(state.history) :], "Learning the keys", len(steps) - len(state.history)):
        if state.adam is None:
            state.adam = Adam(start(model, layers, lessons, step.cohort, space, context))
        lesson = lessons.lesson(len(state.history), [step.cohort[place] for place in step.group])
        keys = space.through(some_of(state.adam.keys, step.group))
        mirrored = lesson.mirrored[: len(lesson.forget)]
        said = said_with(model, layers, keys, lessons.train, lesson.forget, mirrored, options.chunk, context)
        wanted = torch.cat([lessons.targets(lesson.forget, said, mirrored), lesson.kept])
        objective, gradients = gradient(model, layers, keys, lesson, wanted, options.chunk, context)
        state.adam.step(step.group, space.through(gradients), cosine(options.lr, 0.0, step.done))
        state.history.append({"people": len(step.group), "objective": objective / len(step.group)})
        if step.last:
            learned = space.through(state.adam.keys)
            learned = scaled(learned, lengths(model, layers, learned, lessons, step.cohort, context))
            state.codes |= {person: encode(learned, place, options.bits) for place, person in enumerate(step.cohort)}
            state.adam = None
        if unfinished.due():
            state.save(unfinished)
    return state.codes, state.history


@dataclass
class State:
    """Where learning stands.

    Attributes:
        adam: V and R of the cohort that is learned now; none between cohorts.
        codes: Keys that are learned, by identity number.
        history: A row per step taken.
    """

    adam: Adam | None = None
    codes: dict[int, Codes] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, unfinished: Unfinished) -> None:
        """Remember it."""
        tensors = {f"codes/{person}/{part}": tensor for person, codes in self.codes.items() for part, tensor in codes.items()}
        if self.adam is not None:
            tensors |= {f"adam/{name}": tensor for name, tensor in self.adam.state().items()}
        unfinished.save(tensors, {"history": self.history})

    @classmethod
    def load(cls, unfinished: Unfinished, weights: list[str]) -> State | None:
        """Return what was remembered, if anything was."""
        found = unfinished.load()
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
                person, _, part = rest.partition("/")
                state.codes.setdefault(int(person), {})[part] = tensor
        state.adam = Adam.restored(adam, weights) if adam else None
        return state
