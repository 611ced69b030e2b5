"""Training of the loss network of MetaUnlearn, and of the step length, on simulated requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from oneshui_hf.methods import (
    Context,
    DataAccess,
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
    SupportImages,
    build_loss_network,
    meta_gradient,
    total_update,
    trainable_parameters,
    unlearning_steps,
)
from .objectives import SCRUB, LossAlignment, ScrubObjective, compute_logits, sets_after_update, sets_before_update, weighted_loss

if TYPE_CHECKING:
    from .options import MetaUnlearnOptions

LENGTH_LR = 0.05  # of the logarithm of the step length, for Adam
INITIAL_LENGTH = 2e-4  # of the learned step length, as a share of the model's norm


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
    requests: list[SimulatedRequest] = []
    epoch = 0
    while epoch < options.epochs if options.epochs else len(requests) < needed:
        rng = generator(context.seed, "requests", epoch)
        requests += simulate(data.train, sizes, rng, unseen=options.unseen_support)
        epoch += 1
        if epoch == 1 and options.simulated_size and (eligible := sum(len(request.people) for request in requests)) < size:
            raise UsageError(f"--simulated-size {size} is more than the {eligible} identities that can be in a simulated request.")
    used = requests if options.epochs else requests[:needed]
    identities = len(data.train.positions_of)
    if "retain" in sets_after_update(options.objective) and any(len(request.people) == identities for request in used):
        raise UsageError(
            f"A simulated request contains all {identities} training identities, so --objective {options.objective} has no identity to "
            "retain; simulate smaller requests with --simulated-size or --no-vary-size."
        )
    return [used[i : i + group] for i in range(0, len(used), group)]


class MetaLossTrainer:
    """The loss network in training, and what is constant during it.

    Attributes:
        h: The loss network, in training mode.
        theta: The parameters that unlearning updates.
        rows: Embedding row of each training identity.
        simulated: The identities that are in a simulated request, so that their rows are trained.
        scale: The model's norm; lengths are shares of it.
    """

    def __init__(
        self, model: nn.Module, data: DataAccess, plan: list[list[SimulatedRequest]], options: MetaUnlearnOptions, context: Context
    ) -> None:
        self.model, self.data, self.plan, self.options, self.context = model, data, plan, options, context
        self.rows = {person: row for row, person in enumerate(sorted(data.train.positions_of), start=1)}
        self.simulated = {person for requests in plan for request in requests for person in request.people}
        self.theta = trainable_parameters(model, options.update_tokens)
        self.scale = norm(parameters(model)).item()
        self.h = build_loss_network(model, context, len(self.rows), options).to(context.device).train()
        if "val" in sets_before_update(options.objective):
            self.val_logits = predict(model, data.val, context.accelerator)  # of theta

    def train(self) -> tuple[float, list[dict[str, float]]]:
        """Train the loss network and the step length, and leave the network in eval mode.

        Returns:
            The learned length (absolute; its initial value for raw steps), and a row per meta-step: the objective, and the length as a
            share of the model's norm.
        """
        normalised = self.options.step == "normalised"
        log_length = torch.tensor(INITIAL_LENGTH * self.scale, dtype=torch.float64).log()
        optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(self.h.parameters(), lr=self.options.lr, amsgrad=True)]
        if normalised:
            optimizers.append(torch.optim.Adam([log_length], lr=LENGTH_LR))
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(self.plan)) for optimizer in optimizers]

        history = []
        for number, requests in enumerate(self.context.reporter.track(self.plan, "Training the loss network")):
            length = log_length.exp().item() if normalised else self.options.eta
            value, parts, by_length = self.mean_meta_gradient(requests, number, length)
            for parameter, part in zip(self.h.parameters(), parts, strict=True):
                parameter.grad = part
            log_length.grad = torch.tensor(by_length * length, dtype=torch.float64)  # dA/dlog r = r dA/dr
            for optimizer in optimizers:
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            history.append({"objective": value} | ({"length": length / self.scale} if normalised else {}))
        self.h.eval()
        return log_length.exp().item(), history

    def mean_meta_gradient(self, requests: list[SimulatedRequest], number: int, length: float) -> tuple[float, list[torch.Tensor], float]:
        """Return A, dA/dphi and dA/dr, means over the requests of meta-step `number`. Processes share the requests."""
        accelerator = self.context.accelerator
        totals = torch.zeros(2)
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
                length=length,
                normalised=self.options.step == "normalised",
                seed=derive(self.context.seed, "dropout", *stream),
                steps=self.options.unlearning_steps,
            )
            totals += torch.tensor([value, by_length])
            sums = [a + b for a, b in zip(sums, parts, strict=True)]
        value, by_length = (accelerator.reduce(totals.to(self.context.device), "sum") / len(requests)).tolist()
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
        """Return the meta-objective of a request, with as many val and retain images as forget images, sampled for this request."""
        options, task, train, val = self.options, self.context.task, self.data.train, self.data.val
        rng = generator(self.context.seed, "objective", *stream)
        forget = sample(request.forget, options.images_per_set, rng)
        unseen = sample(len(val), len(forget), rng)
        sets = {"forget": train.subset(forget), "val": val.subset(unseen)}
        if "retain" in sets_after_update(options.objective):
            sets["retain"] = train.subset(sample(train.positions_without(request.people), len(forget), rng))

        before = {
            name: self.val_logits[unseen] if name == "val" else compute_logits(self.model, sets[name], self.context.device, options.chunk)
            for name in sets_before_update(options.objective)
        }
        if options.objective == SCRUB:
            return ScrubObjective(sets, before, task, options.chunk)
        # Losses are comparable only if all are weighted. A set without a score occurs where a request has few photos.
        weigh = options.weigh_by_score and all(is_scorable(faces.labels, task) for faces in sets.values())
        losses = {name: weighted_loss(logits, sets[name].labels, task, weigh) for name, logits in before.items()}
        return LossAlignment(sets, losses, task, options.chunk, options.objective, options.distance, weigh)

    def direction(self, request: SimulatedRequest, length: float) -> Weights:
        """Return the unit direction of the total update of a path of this length.

        As in real requests, identities use the unknown row, unless the options train only their own rows.
        """
        images = self.support_images(request, ("calibration",), dropout=1.0 if self.options.identity_dropout else 0.0)
        steps, kind = self.options.unlearning_steps, self.context.task.kind
        path = unlearning_steps(self.model, self.theta, self.h, images, kind, length=length, normalised=True, steps=steps)
        return unit({name: -part for name, part in total_update(path).items()})
