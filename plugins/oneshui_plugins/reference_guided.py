"""Reference-guided unlearning: pull the prediction for each support image to that for unseen photos with the same labels.

Mirlach, Laguna, Vogt: "Reference-Guided Machine Unlearning", 2026 (arXiv 2603.11210), with the retain term left out, since no training data
is read at the request, and with one photo a person. The reference of a photo x is the mean prediction q of the original model for held-out
photos (the validation set, whose identities the model was not trained on) with the same labels; descent reduces

    KL(q || p(x)),    p(x) the prediction for x,

until the loss of x has reached the loss of q, within a tolerance. The paper matches the class histogram of a batch; here each class, and
each value of each attribute, has its own mean.

By Jensen's inequality the loss of a mean probability is smaller than the mean loss of the photos, so a photo would keep a smaller loss than
unseen photos have. By default q gives the photo's own label the probability exp(-mean loss), so that its loss is theirs, and divides the
rest among the other classes as their mean probabilities do. `--reference probabilities` is the paper's mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, UsageError, option

from .common.descent import DescentOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet, Task, TaskKind, Weights

TOLERANCE = 0.05  # of the reference loss: descent approaches it without reaching it


@dataclass(frozen=True)
class ReferenceGuidedOptions(DescentOptions):
    """Options of reference-guided unlearning."""

    steps: int = option(30, "Most gradient steps; fewer are taken once every loss is reached.", minimum=1, at="apply", search=(1, 60))
    lr: float = option(0.003, "Factor of the gradient.", minimum=0, at="apply", search=(1e-4, 1.0))
    reference: str = option(
        "losses",
        "What the reference takes over from held-out photos with the same labels: their mean loss, or their mean probabilities.",
        choices=("losses", "probabilities"),
        at="apply",
        search=True,
    )


class ReferenceGuided(Method[ReferenceGuidedOptions]):
    """Distillation of the mean prediction for unseen photos with the same labels."""

    summary = "pulls the prediction for the support images to that for unseen photos with the same labels, until the loss is theirs"
    paper = "Mirlach et al., Reference-Guided Machine Unlearning, arXiv 2603.11210"
    needs = Needs(prepare=frozenset({"val"}), apply=frozenset({"support"}))
    options = ReferenceGuidedOptions
    prepares = "required"

    def prepare(self, model: nn.Module, data: DataAccess, options: ReferenceGuidedOptions, context: Context) -> Artefact:
        """Compute mean probabilities and mean losses of the held-out photos, for each label."""
        from oneshui_hf.methods import Artefact, predict

        held_out: FaceSet = data.val
        logits = predict(model, held_out, context.accelerator)
        return Artefact(tensors=label_statistics(logits, held_out.labels, context.task), report={"photos": len(held_out)})

    def cost(self, model: nn.Module, data: DataAccess, options: ReferenceGuidedOptions, context: Context) -> Cost:
        """Return one pass over the held-out photos, and the size of the statistics."""
        shapes = statistics_shapes(context.task).values()
        return Cost(forward=len(data.val), bytes=4 * sum(rows * columns * depth for rows, columns, depth in shapes))

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: ReferenceGuidedOptions, context: Context
    ) -> nn.Module:
        """Return the model after some steps down KL(q || p) of the photos whose loss is still below that of their reference.

        Raises:
            UsageError: No held-out photo has the labels of a support image.
            OneshuiError: The artefact is damaged or of another task.
        """
        from .common.descent import descend, gradient_of
        from .common.kl import log_probabilities

        assert artefact is not None  # the core requires preparation
        artefact.require_tensors(statistics_shapes(context.task))
        if min(tensor.min() for tensor in artefact.tensors.values()) < 0:
            raise OneshuiError("The artefact is damaged (a mean loss or probability is negative); prepare again.")
        pixels, kind = data.support.pixels, context.task.kind
        index = outcomes(data.support.labels, kind)  # (n, D)
        statistics = {name: tensor.to(pixels) for name, tensor in artefact.tensors.items()}
        target, known = references(statistics, index, options.reference)
        weight = known / known.sum(1, keepdim=True).clamp(min=1)  # (n, D): the mean over the labels that have a reference
        has_reference = known.any(1)
        if not has_reference.any():
            raise UsageError("No held-out photo has the labels of these support images, so there is no reference; use another method.")
        if not has_reference.all():
            context.reporter.warn("Some support images have labels that no held-out photo has; they are left out.")

        def loss_of(log_p: torch.Tensor) -> torch.Tensor:
            """Return the loss of predictions (n, D, O) under the support images' labels, (n,)."""
            return -(log_p.gather(2, index.unsqueeze(2)).squeeze(2) * weight).sum(1)

        log_q = target.log()
        goal = (1 - TOLERANCE) * loss_of(log_q)

        def gradient(new: nn.Module) -> Weights | None:
            """Return the gradient of the mean divergence of the photos below their goal; None if there are none."""
            log_p = log_probabilities(new(pixel_values=pixels).logits, kind)
            active = has_reference & (loss_of(log_p.detach()) < goal)
            if not active.any():
                return None
            divergence = ((target * (log_q - log_p)).sum(2) * weight).sum(1)  # (n,)
            return gradient_of(divergence[active].sum() / len(pixels), new)

        new = descend(model, gradient, options.steps, options.lr, context)
        if context.report["steps_taken"] == 0:
            context.reporter.warn("The loss on these photos is already that of unseen photos, so the model is unchanged.")
        return new


def outcomes(labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return the position of each label (n, D) in the outcomes of `common.kl.log_probabilities` (an attribute that is present is 0)."""
    return 1 - labels.long() if kind == "multi_label" else labels.unsqueeze(1)


def statistics_shapes(task: Task) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of `label_statistics`: (D, O, O), (D, O, 1) and (D, O, 1)."""
    count = len(task.label_names)
    d, o = (count, 2) if task.kind == "multi_label" else (1, count)
    return {"probabilities": (d, o, o), "losses": (d, o, 1), "photos": (d, o, 1)}


def label_statistics(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> dict[str, torch.Tensor]:
    """Return what the model predicts for photos of each label. D labels have O outcomes: K attributes two, or one label C classes.

    Args:
        logits: (n, K).
        labels: (n, K) or (n,).
        task: Their kind, and K.

    Returns:
        probabilities: Mean probability of each outcome over the photos with each true outcome, (D, true outcome, outcome).
        losses: Their mean loss, (D, true outcome, 1).
        photos: Their number, (D, true outcome, 1). Without photos the others are 0.
    """
    import torch.nn.functional as F

    from .common.kl import log_probabilities

    log_p = log_probabilities(logits.double(), task.kind)  # (n, D, O)
    is_true = F.one_hot(outcomes(labels, task.kind), log_p.shape[2]).to(log_p)  # (n, D, O)
    photos = is_true.sum(0).unsqueeze(2)
    divisor = photos.clamp(min=1)
    own = -(log_p * is_true).sum(0).unsqueeze(2)
    sums = {"probabilities": (is_true.unsqueeze(3) * log_p.exp().unsqueeze(2)).sum(0), "losses": own}
    return {name: (part / divisor).float() for name, part in sums.items()} | {"photos": photos.float()}


def references(statistics: dict[str, torch.Tensor], index: torch.Tensor, reference: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the reference prediction of each photo, and where there is one.

    Args:
        statistics: As `label_statistics` returns them.
        index: The true outcomes, (n, D).
        reference: "probabilities" for the mean probabilities, "losses" for a prediction with the mean loss.

    Returns:
        target: q, (n, D, O), above 0 and with sum 1; uniform where there is no reference.
        known: Whether a held-out photo has the same label, (n, D).
    """
    import torch

    rows = torch.arange(index.shape[1], device=index.device)
    mean, loss, photos = (statistics[name][rows, index] for name in ("probabilities", "losses", "photos"))  # (n, D, O), (n, D, 1) twice
    known = photos.squeeze(2) > 0
    tiny = torch.finfo(mean.dtype).tiny
    mean = torch.where(known.unsqueeze(2), mean, 1.0).clamp(min=tiny)
    mean = mean / mean.sum(2, keepdim=True)
    if reference == "probabilities":
        return mean, known
    own = torch.zeros_like(mean).scatter(2, index.unsqueeze(2), 1.0).bool()
    others = mean.masked_fill(own, 0.0)
    likelihood = (-loss).exp().clamp(tiny, 1.0)
    target = torch.where(own, likelihood, (1 - likelihood) * others / others.sum(2, keepdim=True).clamp(min=tiny))
    return torch.where(known.unsqueeze(2), target.clamp(min=tiny), mean), known
