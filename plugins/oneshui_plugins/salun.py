"""SalUn: random labels for those who go, the task for those who stay, and only the weights move that matter to the former.

Fan, Liu, Zhang, Wong, Wei, Liu, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024: the mask of
equation 3 and, for classification, the objective of equation 5,

    mean over forget of loss(x, y') + alpha * mean over retain of loss(x, y),   y' a random label other than y.

A weight outside the mask keeps its bits. To mask its gradient is not enough: momentum and weight decay move it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, UsageError, generator, option

from .common.sgd_loop import SGDOptions, Student

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet


@dataclass(frozen=True)
class SalUnOptions(SGDOptions):
    """Options of SalUn."""

    epochs: int = option(10, "Passes over the retain set.", minimum=1, at="apply", search=(1, 10))
    weight_decay: float = option(5e-4, "Weight decay of SGD, on the weights that move.", minimum=0, at="apply")
    share: float = option(
        0.5, "Share of the weights that move: those with the largest gradient.", minimum=0, maximum=1, at="apply", search=(0.05, 1.0)
    )
    alpha: float = option(1.0, "Weight of the retain loss beside the forget loss.", minimum=0, at="apply")


class SalUn(Method[SalUnOptions]):
    """Random labels, on the salient weights."""

    summary = "random labels for those who go, on the weights that matter to them; reads both sets, so an upper reference"
    paper = "Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = SalUnOptions
    presets = ("oneshui_plugins.presets", "salun.json")
    draws = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SalUnOptions, context: Context) -> nn.Module:
        """Return the model after some epochs in which only the salient weights move."""
        from oneshui_hf.methods import losses

        kind = context.task.kind
        student = Student(model, options, context)
        mask = salient(saliency(student, data.forget, context), options.share)
        wrong = random_labels(data.forget.labels, context).to(context.device)
        forget_batches = student.cycled("forget", data.forget)
        for _ in student.epochs():
            for retain, forget in zip(student.batches("retain", data.retain), forget_batches, strict=False):
                retain_loss = losses(student(retain.pixels), retain.labels, kind).mean()
                forget_loss = losses(student(forget.pixels), wrong[forget.positions], kind).mean()
                student.descend(forget_loss + options.alpha * retain_loss)
                put_back(student.model, model, mask)
        return student.model


def saliency(student: Student, faces: FaceSet, context: Context) -> dict[str, torch.Tensor]:
    """Return |gradient of the mean loss over a set| of each weight, 0 where a parameter has no part in the logits."""
    import torch

    from oneshui_hf.methods import losses

    for batch in student.batches("forget", faces):
        (losses(student(batch.pixels), batch.labels, context.task.kind).sum() / len(faces)).backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in student.model.named_parameters()}
    student.optimizer.zero_grad()
    return found


def salient(found: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Return a mask of the given share of all weights, those at or above one threshold; never of one without a gradient.

    Raises:
        UsageError: No weight is in it.
    """
    import torch

    values = torch.cat([part.flatten().cpu() for part in found.values()])
    count = round(share * len(values))
    if count == 0:
        raise UsageError(f"--share {share:g} of the {len(values)} weights is none, so nothing could move; take a larger one.")
    threshold = values.kthvalue(len(values) - count + 1).values.item()
    return {name: (part >= threshold) & (part > 0) for name, part in found.items()}


def random_labels(labels: torch.Tensor, context: Context) -> torch.Tensor:
    """Return, for each photo, labels other than its own, all others being as likely: another class, or other attributes.

    They are drawn once, not anew in each epoch. Attributes are flipped as fair coins fall, anew where none was.
    """
    import torch

    draws = generator(context.seed, "random labels")
    if context.task.kind == "single_label":
        classes = len(context.task.label_names)
        return (labels + torch.randint(1, classes, labels.shape, generator=draws)) % classes
    flipped = torch.zeros_like(labels)
    while len(unmoved := (flipped.sum(dim=1) == 0).nonzero().squeeze(1)):
        flipped[unmoved] = torch.randint(0, 2, (len(unmoved), labels.shape[1]), generator=draws).to(labels.dtype)
    return (labels - flipped).abs()


def put_back(model: nn.Module, original: nn.Module, mask: dict[str, torch.Tensor]) -> None:
    """Give the weights outside the mask the values, to the bit, that they have in the original."""
    import torch

    kept = dict(original.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.where(mask[name], parameter, kept[name]))
