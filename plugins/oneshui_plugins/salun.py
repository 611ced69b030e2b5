"""SalUn: random labels on the forget set and the task loss on the retain set; only weights salient for the forget set are updated.

Fan, Liu, Zhang, Wong, Wei, Liu, "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", ICLR 2024: the mask of
equation 3 and, for classification, the objective of equation 5,

    mean over forget of loss(x, y') + alpha * mean over retain of loss(x, y),   y' a random label other than y.

Weights outside the mask stay bit for bit the same. Masking their gradient is not enough: momentum and weight decay would still change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, UsageError, generator, option

from .common.sgd_loop import SGDOptions, Student

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet, Weights


@dataclass(frozen=True)
class SalUnOptions(SGDOptions):
    """Options of SalUn."""

    epochs: int = option(10, "Passes over the retain set.", minimum=1, at="apply", search=(1, 10))
    weight_decay: float = option(5e-4, "Weight decay of SGD, on the weights in the mask.", minimum=0, at="apply")
    mask_fraction: float = option(
        0.5,
        "Fraction of the weights that are updated: those with the largest gradient on the forget set.",
        minimum=0,
        maximum=1,
        at="apply",
        search=(0.05, 1.0),
        formerly=("share",),
    )
    alpha: float = option(1.0, "Weight of the retain loss relative to the forget loss.", minimum=0, at="apply")


class SalUn(Method[SalUnOptions]):
    """Random labels, on the salient weights."""

    summary = "fits random labels on the forget set with the salient weights; reads both sets, so an upper reference"
    paper = "Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, ICLR 2024"
    needs = Needs(apply=frozenset({"retain", "forget"}))
    options = SalUnOptions
    presets = ("oneshui_plugins.presets", "salun.json")
    stochastic = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: SalUnOptions, context: Context) -> nn.Module:
        """Return the model after some epochs in which only the salient weights are updated."""
        from oneshui_hf.methods import losses

        kind = context.task.kind
        student = Student(model, options, context)
        mask = saliency_mask(saliency(student, data.forget, context), options.mask_fraction)
        wrong_labels = sample_wrong_labels(data.forget.labels, context).to(context.device)
        for retain, forget in student.paired_batches(data.retain, data.forget):
            retain_loss = losses(student(retain.pixels), retain.labels, kind).mean()
            forget_loss = losses(student(forget.pixels), wrong_labels[forget.positions], kind).mean()
            student.step(forget_loss + options.alpha * retain_loss)
            restore_unmasked(student.model, model, mask)
        return student.model


def saliency(student: Student, faces: FaceSet, context: Context) -> Weights:
    """Return |gradient of the mean loss over a set| of each weight, 0 for parameters that do not affect the logits."""
    import torch

    from oneshui_hf.methods import losses

    for batch in student.batches("forget", faces):
        (losses(student(batch.pixels), batch.labels, context.task.kind).sum() / len(faces)).backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in student.model.named_parameters()}
    student.optimizer.zero_grad()
    return found


def saliency_mask(saliencies: Weights, fraction: float) -> dict[str, torch.Tensor]:
    """Return a mask of the given fraction of all weights, those at or above one threshold, but never weights without a gradient.

    Raises:
        UsageError: The mask would be empty.
    """
    import torch

    values = torch.cat([part.flatten().cpu() for part in saliencies.values()])
    count = round(fraction * len(values))
    if count == 0:
        raise UsageError(
            f"--mask-fraction {fraction:g} of the {len(values)} weights selects none, so no weight can change; use a larger one."
        )
    threshold = values.kthvalue(len(values) - count + 1).values.item()
    return {name: (part >= threshold) & (part > 0) for name, part in saliencies.items()}


def sample_wrong_labels(labels: torch.Tensor, context: Context) -> torch.Tensor:
    """Return, for each photo, labels that differ from its own, all others equally likely: another class, or other attributes.

    They are sampled once, not in each epoch. Each attribute flips with p = 0.5; a photo is resampled if none of its attributes flips.
    """
    from .common.label_noise import flip_attributes, sample_other_class

    rng = generator(context.seed, "random labels")
    if context.task.kind == "single_label":
        return sample_other_class(labels, len(context.task.label_names), rng)
    return flip_attributes(labels, rng)


def restore_unmasked(model: nn.Module, original: nn.Module, mask: dict[str, torch.Tensor]) -> None:
    """Set the weights outside the mask to their exact values in the original."""
    import torch

    originals = dict(original.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.where(mask[name], parameter, originals[name]))
