"""Learning forget keys: those of many people at once, tried in the company in which they may be used.

In each step some people ask together. Their keys are attached to the model, which shall then say of their photos what it would say of
strangers' (`strangers`), and of everybody else's, and of strangers', what it said before:

    L = sum_{p asks} mean_{x of p} KL(target(x) || f(x))  +  balance * n * mean_{x of others} KL(f_0(x) || f(x))

with f the model with the keys of all n who ask. The number that ask differs from step to step, so that keys are learned alone and in
company, and the sum of any of them is what was learned for. A forget photo is felt by its own person's key alone (`attached`), a photo of
the others by all: who shall be forgotten is each key's own business, what it costs the others is everybody's.

D is learned as R times a matrix that whitens the layer's inputs, so that no direction is loud only because every photo has much of it:

    D = R (C + damping * c * I)^(-1/2)        C the covariance of the input rows over training photos, c the mean of its diagonal

Where D listens, what everybody's photos say is then as quiet as it can be beside what the person's say (Fisher's discriminant).

Each person's key has an Adam of its own, which counts that person's steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import Context, OneshuiError, generator, sample

from .divergence import divergence
from .finetune import cosine
from .key_codes import Codes, encode
from .key_factors import Factors, Keys, attached
from .strangers import Said, as_strangers
from .subspace import Layer, covariances

if TYPE_CHECKING:
    from oneshui_hf.methods import FaceSet, Task, Unfinished

    from .forget_keys import ForgetKeysOptions

Weights = dict[str, torch.Tensor]  # by the weight's name

BETAS = (0.9, 0.99)  # of Adam; a person takes few steps, so the second is shorter than usual
TINY = 1e-8
WAYS = ("up", "down")
WHITENED = 1024  # training photos whose inputs are looked at
OVERSAMPLED, POWERS, NOISE = 4, 2, 1e-3  # of the search for a gradient's leading directions; a share of the largest singular value


@dataclass(frozen=True)
class Lesson:
    """The photos of one step, in which n people ask.

    Attributes:
        photos: Per set (train, val), the positions in it; first of all those of `forget`.
        forget: Positions in train of the photos of those who ask, (forget,).
        kept: What the model shall go on saying of all the other photos, logits (photos - forget, K).
        weight: How much each photo counts, (photos,).
        own: By which of the n keys each photo is felt, (photos, n) of 0 and 1.
    """

    photos: tuple[tuple[FaceSet, torch.Tensor], ...]
    forget: torch.Tensor
    kept: torch.Tensor
    weight: torch.Tensor
    own: torch.Tensor


@dataclass(frozen=True)
class Lessons:
    """What keys are learned from.

    Attributes:
        train: The training photos.
        val: Strangers' photos.
        known: What the original model says of the training photos.
        strange: What it says of the strangers' photos.
        options: How.
        task: What is predicted.
        seed: Of the draws.
    """

    train: FaceSet
    val: FaceSet
    known: Said
    strange: Said
    options: ForgetKeysOptions
    task: Task
    seed: int

    @cached_property
    def luck(self) -> torch.Tensor:
        """Where within its rank each training photo stands, see `strangers`; (N, K), or (N,) for classes."""
        return torch.rand(self.known.labels.shape, generator=generator(self.seed, "luck"))

    def targets(self, positions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return what the model shall say of these training photos when their people ask together, logits (n, K).

        Args:
            positions: The photos.
            logits: What it says of them now, by which they are ranked: a photo of which it has become unsure is left so.
        """
        return as_strangers(Said(logits, self.known.labels[positions]), self.strange, self.luck[positions], self.task.kind)

    def groups(self, cohort: Sequence[int]) -> list[list[int]]:
        """Return who asks in each step, as places in the cohort: everybody once in each of `visits` rounds, in groups of changing size.

        The logarithm of the size is drawn evenly, so that a person asks as often with few others as with many.
        """
        draws = generator(self.seed, "groups", *cohort)
        most = min(self.options.together, len(cohort))
        groups: list[list[int]] = []
        for _ in range(self.options.visits):
            left = torch.randperm(len(cohort), generator=draws).tolist()
            while left:
                size = int(math.exp(torch.rand((), generator=draws).item() * math.log(most + 1)))
                groups.append(sorted(left[:size]))
                left = left[size:]
        return groups

    def lesson(self, number: int, people: Sequence[int]) -> Lesson:
        """Return the photos of a step in which these people (identity numbers) ask."""
        draws = generator(self.seed, "photos", number, *people)
        theirs = [sample(self.train.positions_of[person], self.options.photos, draws) for person in people]
        forget = torch.cat(theirs)
        retain = sample(self.train.without(people), math.ceil(self.options.retain * len(forget)), draws)
        strange = sample(len(self.val), math.ceil(self.options.val * len(forget)), draws)
        held = len(retain) + len(strange)
        alike = [torch.full((len(some),), 1 / len(some)) for some in theirs]  # however many photos a person has
        return Lesson(
            photos=((self.train, torch.cat([forget, retain])), (self.val, strange)),
            forget=forget,
            kept=torch.cat([self.known.logits[retain], self.strange.logits[strange]]),
            weight=torch.cat([*alike, torch.full((held,), self.options.balance * len(people) / max(1, held))]),
            own=torch.cat([torch.block_diag(*[torch.ones(len(some), 1) for some in theirs]), torch.ones(held, len(people))]),
        )


def said_now(model: nn.Module, layers: Mapping[str, list[Layer]], keys: Keys, lesson: Lesson, chunk: int, context: Context) -> torch.Tensor:
    """Return what the model says with these keys of the photos of those who ask, logits (forget, K) on the CPU. Processes share them."""
    accelerator, train = context.accelerator, lesson.photos[0][0]
    said = torch.zeros(len(lesson.forget), lesson.kept.shape[1], device=context.device)
    mine = torch.arange(len(lesson.forget)).split(chunk)[accelerator.process_index :: accelerator.num_processes]
    with torch.no_grad(), attached(layers, keys):
        for rows in mine:
            said[rows] = model(pixel_values=train.batch(lesson.forget[rows], context.device)[0]).logits
    return accelerator.reduce(said, "sum").cpu()


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
    for faces, positions, rows in _passes(lesson, chunk)[accelerator.process_index :: accelerator.num_processes]:
        pixels, _ = faces.batch(positions, device)
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
        keys: U and R of the whole cohort; updated in place.
        steps: How many each person has taken, (P,).
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.first = {name: Factors(torch.zeros_like(f.up), torch.zeros_like(f.down)) for name, f in keys.items()}
        self.second = {name: Factors(torch.zeros_like(f.up), torch.zeros_like(f.down)) for name, f in keys.items()}
        self.steps = torch.zeros(len(next(iter(keys.values())).up), dtype=torch.int64)

    def some(self, people: list[int]) -> Keys:
        """Return the keys of some people."""
        return {name: Factors(f.up[people], f.down[people]) for name, f in self.keys.items()}

    def step(self, people: list[int], gradients: Keys, lr: float) -> None:
        """Move the keys of some people along their gradients."""
        self.steps[people] += 1
        count = self.steps[people].view(-1, 1, 1)
        fade, slow = (1 - beta**count for beta in BETAS)
        for name, gradient in gradients.items():
            for part in WAYS:
                g = getattr(gradient, part)
                key, first, second = (getattr(place[name], part) for place in (self.keys, self.first, self.second))
                first[people] = torch.lerp(g, first[people], BETAS[0])
                second[people] = torch.lerp(g * g, second[people], BETAS[1])
                key[people] -= lr * (first[people] / fade.to(g)) / ((second[people] / slow.to(g)).sqrt() + TINY)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that it holds, by name."""
        parts = {"keys": self.keys, "first": self.first, "second": self.second}
        tensors = {f"{part}/{way}/{name}": getattr(f, way) for part, keys in parts.items() for name, f in keys.items() for way in WAYS}
        return tensors | {"steps": self.steps}

    @classmethod
    def restored(cls, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> Adam:
        """Return what was saved by `state`, of weights in this order."""

        def keys(part: str) -> Keys:
            return {name: Factors(*(tensors[f"{part}/{way}/{name}"] for way in WAYS)) for name in names}

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
    for start in range(0, len(people), lessons.options.cohort):
        cohort = tuple(people[start : start + lessons.options.cohort])
        groups = lessons.groups(cohort)
        steps += [Step(cohort, group, i / len(groups), i + 1 == len(groups)) for i, group in enumerate(groups)]
    return steps


def whitening(model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, context: Context) -> Weights:
    """Return the symmetric matrix (d, d) by which D is learned, of each weight; its eigenvalues have a mean of 1."""
    draws = generator(context.seed, "whitening")
    some = sample(len(lessons.train), WHITENED, draws)
    found = covariances(model, len(some), lambda rows: lessons.train.batch(some[rows], context.device)[0], lessons.options.chunk, context)
    matrices = {}
    for name in layers:
        c = found[name].matrix[0]  # a weight with keys has one group
        energies, vectors = torch.linalg.eigh(c)
        quieter = (energies.clamp(min=0) + lessons.options.damping * energies.mean()).rsqrt()
        matrices[name] = ((vectors * (quieter / quieter.mean())) @ vectors.mT).float()
    return matrices


def through(keys: Keys, matrices: Weights) -> Keys:
    """Return the same U, and R times the matrices for D; of gradients the same, since the matrices are symmetric."""
    return {name: Factors(factors.up, factors.down @ matrices[name]) for name, factors in keys.items()}


def start(
    model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, cohort: Sequence[int], matrices: Weights, context: Context
) -> Keys:
    """Return U and R that a cohort starts from: they change nothing yet (U = 0) and listen (R) where the person's gradient lies.

    R are about the leading right singular vectors of the whitened gradient of the person's part of the objective with regard to W.
    """
    accelerator, options, kind = context.accelerator, lessons.options, context.task.kind
    weights = {name: weight for name, weight in model.named_parameters() if name in layers}
    downs = {name: torch.zeros(len(cohort), options.rank, weight[0].numel(), device=context.device) for name, weight in weights.items()}
    for place in range(accelerator.process_index, len(cohort), accelerator.num_processes):
        draws = generator(context.seed, "start", cohort[place])
        positions = sample(lessons.train.positions_of[cohort[place]], options.photos, draws)
        moved = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        wanted = lessons.targets(positions, lessons.known.logits[positions])
        for rows in torch.arange(len(positions)).split(options.chunk):
            pixels, _ = lessons.train.batch(positions[rows], context.device)
            logits = torch.func.functional_call(model, moved, kwargs={"pixel_values": pixels}).logits
            divergence(wanted[rows].to(context.device), logits, kind).sum().backward()
        for name, weight in moved.items():
            g = torch.zeros_like(weight) if weight.grad is None else weight.grad
            downs[name][place] = row_space(g.flatten(1) @ matrices[name], options.rank, draws)
    return {
        name: Factors(torch.zeros(len(cohort), len(weights[name]), options.rank, device=context.device), accelerator.reduce(down, "sum"))
        for name, down in downs.items()
    }


def row_space(matrix: torch.Tensor, rank: int, draws: torch.Generator) -> torch.Tensor:
    """Return orthonormal rows (rank, d), about the leading right singular vectors of a matrix (out, d).

    By subspace iteration from random vectors (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1), since a whole decomposition of every
    weight for every person would take longer than learning. Rows whose singular value is that of rounding errors are zero, as are those
    beyond d: a direction out of noise would be another one on another machine, and Adam would make as much of it as of a real one.
    """
    wide = matrix.double()
    basis = torch.randn(wide.shape[1], min(rank + OVERSAMPLED, wide.shape[1]), generator=draws, dtype=torch.float64).to(wide)
    for _ in range(POWERS):
        basis = torch.linalg.qr(wide.mT @ (wide @ basis)).Q
    _, sizes, leading = torch.linalg.svd(wide @ basis, full_matrices=False)
    rows = ((leading * (sizes > NOISE * sizes[0]).unsqueeze(1)) @ basis.mT)[:rank]
    return torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows))).to(matrix)


def learn(
    model: nn.Module, layers: Mapping[str, list[Layer]], lessons: Lessons, people: Sequence[int], context: Context
) -> tuple[dict[int, Codes], list[dict[str, float]]]:
    """Learn the keys of people (identity numbers); return each one's codes, and what was measured in every step.

    Goes on where it was interrupted, if the context remembers.
    """
    options, unfinished = lessons.options, context.unfinished
    steps, matrices = plan(lessons, people), whitening(model, layers, lessons, context)
    state = State.load(unfinished, list(layers)) or State()
    for step in context.reporter.track(steps[len(state.history) :], "Learning the keys", len(steps) - len(state.history)):
        if state.adam is None:
            state.adam = Adam(start(model, layers, lessons, step.cohort, matrices, context))
        lesson = lessons.lesson(len(state.history), [step.cohort[place] for place in step.group])
        keys = through(state.adam.some(step.group), matrices)
        said = said_now(model, layers, keys, lesson, options.chunk, context)
        wanted = torch.cat([lessons.targets(lesson.forget, said), lesson.kept])
        objective, gradients = gradient(model, layers, keys, lesson, wanted, options.chunk, context)
        state.adam.step(step.group, through(gradients, matrices), cosine(options.lr, 0.0, step.done))
        state.history.append({"people": len(step.group), "objective": objective / len(step.group)})
        if step.last:
            learned = through(state.adam.keys, matrices)
            state.codes |= {person: encode(learned, place, options.bits) for place, person in enumerate(step.cohort)}
            state.adam = None
        if unfinished.due():
            state.save(unfinished)
    return state.codes, state.history


@dataclass
class State:
    """Where learning stands.

    Attributes:
        adam: U and R of the cohort that is learned now; none between cohorts.
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
