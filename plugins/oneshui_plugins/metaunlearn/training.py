"""Training of the loss network of MetaUnlearn, and of the step length, on simulated requests.

With `--holdout`, the requests of training contain only some of the identities, and the meta-objective is measured on the others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oneshui_hf.methods import (
    Context,
    DataAccess,
    FaceSet,
    OneshuiError,
    SimulatedRequest,
    UsageError,
    Weights,
    derive,
    generator,
    is_scorable,
    norm,
    parameters,
    predict,
    sample,
    simulate,
    targets,
    unit,
)

from .loss_network import (
    UNKNOWN_ROW,
    StepSize,
    SupportImages,
    UnlearningStep,
    build_loss_network,
    meta_gradient,
    step_groups,
    total_update,
    trainable_parameters,
    unlearning_steps,
)
from .objectives import SCRUB, LossAlignment, ScrubObjective, compute_logits, sets_after_update, sets_before_update, weighted_loss
from .training_state import TrainingState

if TYPE_CHECKING:
    from .options import MetaUnlearnOptions

INITIAL_LENGTH = 2e-4  # of the learned step length, as a share of the norm of the parameters that it is for


def held_out_identities(train: FaceSet, options: MetaUnlearnOptions, seed: int) -> frozenset[int]:
    """Return the identities that are held out of training: a share of those that can be in simulated requests, at least one and not all.

    Raises:
        UsageError: Only one identity can be in simulated requests.
    """
    if options.holdout == 0:
        return frozenset()
    everyone = (len(train.people), len(train.people))
    (request,) = simulate(train, everyone, generator(seed, "held-out identities"), unseen=options.unseen_support)
    if len(request.people) < 2:
        raise UsageError("Only one identity can be in simulated requests, so none can be held out; use --holdout 0.")
    count = max(1, round(options.holdout * len(request.people)))
    return frozenset(request.people[: min(count, len(request.people) - 1)])


def held_out_requests(data: DataAccess, options: MetaUnlearnOptions, context: Context) -> list[SimulatedRequest]:
    """Return simulated requests of the held-out identities, each in one request, of the size of the run's own if they are enough."""
    train = data.train
    if not (held_out := held_out_identities(train, options, context.seed)):
        return []
    size = min(max(1, context.request_size), len(held_out))
    rng = generator(context.seed, "held-out requests")
    return list(simulate(_without(train, set(train.positions_of) - held_out), (size, size), rng, unseen=options.unseen_support))


def _without(train: FaceSet, people: Collection[int]) -> FaceSet:
    """Return a training set whose simulated requests do not contain these identities."""
    return dataclasses.replace(train, excluded_from_simulation=train.excluded_from_simulation.union(people))


def plan_requests(data: DataAccess, options: MetaUnlearnOptions, context: Context) -> list[list[SimulatedRequest]]:
    """Return the simulated requests of every meta-step, the same on every process.

    Raises:
        UsageError: Fewer identities are eligible than a request needs, or a request leaves no identity for the objective to retain.
    """
    size = options.simulated_size or max(1, context.request_size)
    sizes = (1, 2 * size) if options.vary_size else (size, size)
    group = options.requests_per_step
    if context.accelerator.num_processes > group:
        processes = context.accelerator.num_processes
        context.reporter.note(
            f"{processes} processes share {group} request per meta-step; --requests-per-step {processes} would use all of them."
        )
    needed = options.steps * group
    held_out = held_out_identities(data.train, options, context.seed)
    train = _without(data.train, held_out)
    requests: list[SimulatedRequest] = []
    epoch = 0
    while epoch < options.epochs if options.epochs else len(requests) < needed:
        rng = generator(context.seed, "requests", epoch)
        requests += simulate(train, sizes, rng, unseen=options.unseen_support)
        epoch += 1
        if epoch == 1 and options.simulated_size and (eligible := sum(len(request.people) for request in requests)) < size:
            raise UsageError(f"--simulated-size {size} is more than the {eligible} identities that can be in a simulated request.")
    used = requests if options.epochs else requests[:needed]
    identities = len(data.train.positions_of) - len(held_out)
    if "retain" in sets_after_update(options.objective) and any(len(request.people) == identities for request in used):
        raise UsageError(
            f"A simulated request contains all {identities} identities of training, so --objective {options.objective} has no identity to "
            "retain; simulate smaller requests with --simulated-size or --no-vary-size."
        )
    return [used[i : i + group] for i in range(0, len(used), group)]


@dataclass(frozen=True)
class HeldOutRequest:
    """A simulated request of held-out identities: its support images, and its objective."""

    images: SupportImages
    objective: LossAlignment | ScrubObjective


class MetaLossTrainer:
    """The loss network in training, and what is constant during it.

    Attributes:
        h: The loss network, in training mode.
        theta: The parameters that unlearning updates.
        rows: Embedding row of each training identity.
        simulated: The identities that are in a simulated request of training, so that their rows are trained.
        held_out: Identities that are in no such request.
        original_objective: Of the original model on the held-out identities, once the training has started.
        group_of: For each parameter of theta, the index of the step length that it uses.
        scale: The model's norm; lengths are shares of it.
    """

    def __init__(
        self, model: nn.Module, data: DataAccess, plan: list[list[SimulatedRequest]], options: MetaUnlearnOptions, context: Context
    ) -> None:
        self.model, self.data, self.plan, self.options, self.context = model, data, plan, options, context
        self.rows = {person: row for row, person in enumerate(sorted(data.train.positions_of), start=1)}
        self.simulated = {person for requests in plan for request in requests for person in request.people}
        self.held_out = held_out_identities(data.train, options, context.seed)
        self.theta = trainable_parameters(model, options.update_tokens)
        self.group_of = step_groups(self.theta, options.length_by)
        self.scale = norm(parameters(model)).item()
        self.h = build_loss_network(model, context, len(self.rows), options).to(context.device).train()
        if "val" in sets_before_update(options.objective):
            self.val_logits = predict(model, data.val, context.accelerator)  # of theta

    @property
    def normalised(self) -> bool:
        """Whether steps have a learned length."""
        return self.options.step == "normalised"

    def step_size(self, lengths: Sequence[float]) -> StepSize:
        """Return the size of the steps for these lengths (absolute), which raw steps do not use."""
        return StepSize(tuple(lengths), self.group_of) if self.normalised else StepSize.raw(self.options.eta)

    def initial_lengths(self) -> torch.Tensor:
        """Return the lengths before training, float64: the same share of the norm of each group, and of the model if there is one group."""
        if self.options.length_by == "model":
            return torch.tensor([INITIAL_LENGTH * self.scale], dtype=torch.float64)
        squares = torch.zeros(max(self.group_of.values()) + 1, dtype=torch.float64)
        for name, part in self.theta.items():
            squares[self.group_of[name]] += (part.double() ** 2).sum().cpu()
        return INITIAL_LENGTH * squares.sqrt()

    def train(self) -> TrainingState:
        """Train the loss network and the step lengths, and leave the network in eval mode.

        Continues an interrupted training if the context has its state. A row of the history has the objective of a meta-step, and the
        total length as a share of the model's norm.

        Raises:
            OneshuiError: The objective is not finite.
        """
        resume_state = self.context.resume_state
        state = TrainingState(self.h, self.initial_lengths(), self.options.lr)
        state.load(resume_state)
        requests = self.prepare_held_out_requests()
        if self.held_out:
            self.original_objective = self.held_out_objective(requests, None)
        first, total = len(state.history), len(self.plan)
        with resume_state.stoppable():
            for number in self.context.reporter.track(range(first, total), "Training the loss network", total - first):
                if self.held_out and number % self.options.evaluate_every == 0:
                    state.record_evaluation(self.held_out_objective(requests, state.lengths))
                lengths = state.lengths
                value, by_phi, by_length = self.mean_meta_gradient(self.plan[number], number, self.step_size(lengths))
                if not math.isfinite(value):
                    raise OneshuiError("The training of the loss network diverged: the objective is no longer finite. Use a smaller --lr.")
                state.step(by_phi, by_length, number / total, self.normalised)
                state.history.append({"objective": value} | ({"length": math.hypot(*lengths) / self.scale} if self.normalised else {}))
                self.context.reporter.metrics({f"prepare/{name}": part for name, part in state.history[-1].items()}, len(state.history))
                if resume_state.should_save():
                    state.save(resume_state)
        if self.held_out:
            state.record_evaluation(self.held_out_objective(requests, state.lengths))
            if self.options.early_stopping:
                state.restore_best()
        self.h.eval()
        return state

    def prepare_held_out_requests(self) -> list[HeldOutRequest]:
        """Return this process's share of the simulated requests of held-out identities.

        Their images are the same in every evaluation. As in real requests, identities use the unknown row, unless the options train only
        their own rows.
        """
        indexed = list(enumerate(held_out_requests(self.data, self.options, self.context)))
        dropout = 1.0 if self.options.identity_dropout else 0.0
        return [
            HeldOutRequest(self.support_images(request, ("held-out", index), dropout), self.objective(request, ("held-out", index)))
            for index, request in self.context.local_share(indexed)
        ]

    def held_out_objective(self, requests: list[HeldOutRequest], lengths: Sequence[float] | None) -> float:
        """Return the mean objective on held-out identities, with the dropout of h off; of the original model if lengths are None."""
        self.h.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for request in requests:
            theta_u = self.theta
            if lengths is not None:
                path = self._path(request.images, self.step_size(lengths))
                theta_u = path[-1].theta_next
            sums += torch.tensor([request.objective.value(self.model, theta_u), 1.0], dtype=torch.float64)
        self.h.train()
        total, count = self.context.accelerator.reduce(sums.to(self.context.device), "sum").tolist()
        return total / count

    def mean_meta_gradient(
        self, requests: list[SimulatedRequest], number: int, size: StepSize
    ) -> tuple[float, list[torch.Tensor], list[float]]:
        """Return A, dA/dphi and dA/dr for each length, means over the requests of meta-step `number`. Processes share the requests."""
        accelerator = self.context.accelerator
        totals = torch.zeros(1 + len(size.lengths))
        sums = [torch.zeros_like(parameter) for parameter in self.h.parameters()]
        for index in self.context.local_share(range(len(requests))):
            stream = (number, index)
            value, parts, by_length = meta_gradient(
                self.model,
                self.theta,
                self.h,
                self.support_images(requests[index], stream),
                self.objective(requests[index], stream),
                self.context.task.kind,
                size,
                seed=derive(self.context.seed, "dropout", *stream),
                steps=self.options.unlearning_steps,
            )
            totals += torch.tensor([value, *by_length])
            sums = [a + b for a, b in zip(sums, parts, strict=True)]
        value, *by_length = (accelerator.reduce(totals.to(self.context.device), "sum") / len(requests)).tolist()
        return value, [accelerator.reduce(part, "sum") / len(requests) for part in sums], by_length

    def support_images(self, request: SimulatedRequest, stream: tuple[Any, ...], dropout: float | None = None) -> SupportImages:
        """Return the support images of a simulated request; each identity is treated as unknown with probability `dropout`.

        Args:
            request: The simulated request.
            stream: Names of the random stream, in addition to the seed.
            dropout: Probability; that of the options by default.
        """
        pixels, labels = request.support_set.batch(request.support, self.context.device)
        images = SupportImages(pixels, targets(labels, self.context.task))
        if self.options.use_identity:
            rows = torch.tensor([self.rows[person] for person in request.people])
            probability = self.options.identity_dropout if dropout is None else dropout
            is_unknown = torch.rand(len(rows), generator=generator(self.context.seed, "identity", *stream)) < probability
            images.identity_rows = torch.where(is_unknown, UNKNOWN_ROW, rows).to(self.context.device)
        return images

    def objective(self, request: SimulatedRequest, stream: tuple[Any, ...]) -> LossAlignment | ScrubObjective:
        """Return the meta-objective of a request, with as many val and retain images as forget images, sampled for this request.

        Retain images never show held-out identities.
        """
        options, task, train, val = self.options, self.context.task, self.data.train, self.data.val
        rng = generator(self.context.seed, "objective", *stream)
        forget = sample(request.forget, options.images_per_set, rng)
        unseen = sample(len(val), len(forget), rng)
        sets = {"forget": train.subset(forget), "val": val.subset(unseen)}
        if "retain" in sets_after_update(options.objective):
            sets["retain"] = train.subset(sample(train.positions_without(self.held_out.union(request.people)), len(forget), rng))

        before = {
            name: self.val_logits[unseen] if name == "val" else compute_logits(self.model, sets[name], options.chunk, self.theta)
            for name in sets_before_update(options.objective)
        }
        if options.objective == SCRUB:
            return ScrubObjective(sets, before, task, options.chunk)
        # Losses are comparable only if all are weighted. A set without a score occurs where a request has few photos.
        weigh = options.weigh_by_score and all(is_scorable(faces.labels, task) for faces in sets.values())
        losses = {name: weighted_loss(logits, sets[name].labels, task, weigh) for name, logits in before.items()}
        return LossAlignment(sets, losses, task, options.chunk, options.objective, options.distance, weigh)

    def direction(self, request: SimulatedRequest, lengths: Sequence[float]) -> Weights:
        """Return the unit direction of the total update of a path of these lengths.

        As in real requests, identities use the unknown row, unless the options train only their own rows.
        """
        images = self.support_images(request, ("calibration",), dropout=1.0 if self.options.identity_dropout else 0.0)
        return unit({name: -part for name, part in total_update(self._path(images, self.step_size(lengths))).items()})

    def _path(self, images: SupportImages, size: StepSize) -> list[UnlearningStep]:
        return unlearning_steps(self.model, self.theta, self.h, images, self.context.task.kind, size, self.options.unlearning_steps)
