"""MU-Mis: reduce the model's sensitivity to the support images, the true class's relative to that of other classes.

Cheng, Huang, Zhou, He, Yang, Wu, Huang: "Remaining-data-free Machine Unlearning by Suppressing Sample Contribution", 2024
(arXiv 2402.15109). Training on a photo x of class c makes the logit f_c more sensitive to x than the logits of other classes are. Gradient
descent on the weights reverses this:

    L = 1/n sum_x (||df_c/dx||^2 - ||df_c'/dx||^2),    c' another class, sampled for each photo in each step.

It stops when the sensitivity to the photos of the other classes, ||df_c'/dx||, is above its minimum so far and above `recovery` times its
value in the original model. Here it is the mean over all other classes, so that the stopping rule does not depend on which are sampled.
Where it rises from the first step on, a `recovery` of 1 stops at once; the default leaves room for several steps.

The scale of L, a squared gradient, is arbitrary, so each step has a given length, as a share of the norm of the model's parameters. The
photos of the paper are those that the model was trained on; the support images are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, UsageError, generator, option

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Weights


@dataclass(frozen=True)
class MUMisOptions:
    """Options of MU-Mis."""

    steps: int = option(
        30, "Most gradient steps; fewer are taken once the other classes have recovered.", minimum=1, at="apply", search=(1, 60)
    )
    length: float = option(
        3e-4, "Length of each step as a share of the norm of the model's parameters.", minimum=0, at="apply", search=(1e-5, 5e-3)
    )
    recovery: float = option(
        1.5,
        "Stop when the sensitivity of the other classes is above this multiple of its original value.",
        minimum=0,
        at="apply",
        search=(0.9, 2.0),
    )
    chunk: int = option(8, "Support images differentiated at once; affects memory, not the result.", minimum=1, at="apply")


class MUMis(Method[MUMisOptions]):
    """Descent on the difference of input sensitivities."""

    summary = "reduces how sensitive the true class's logit is to the support images, relative to other classes; for classes only"
    paper = "Cheng et al., Remaining-data-free Machine Unlearning by Suppressing Sample Contribution, arXiv 2402.15109"
    needs = Needs(apply=frozenset({"support"}))
    options = MUMisOptions
    stochastic = True
    classes_only = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: MUMisOptions, context: Context) -> nn.Module:
        """Return the model after some steps down L.

        Raises:
            UsageError: The model predicts attributes, or a single class.
            OneshuiError: The gradient is zero or not finite.
        """
        import torch

        from oneshui_hf.methods import norm, parameters, unit

        from .common.descent import add_to, descend, gradient_of
        from .common.label_noise import sample_other_class

        num_classes = len(context.task.label_names)
        if context.task.kind != "single_label" or num_classes < 2:
            raise UsageError(
                "MU-Mis compares a photo's class with other classes, so it needs a model with two or more classes, and not attributes; use "
                "another method."
            )
        pixels, labels = data.support.pixels, data.support.labels
        chunks = torch.arange(len(pixels)).split(options.chunk)
        rng = generator(context.seed, "other classes")
        original, lowest = 0.0, float("inf")  # of the other classes' sensitivity

        def gradient(new: nn.Module) -> Weights | None:
            """Return the direction of the gradient of L, or None where the other classes' sensitivity has recovered."""
            nonlocal original, lowest
            all_classes = torch.cat([sensitivities(new, pixels[rows], num_classes) for rows in chunks])  # (n, C)
            is_target = torch.nn.functional.one_hot(labels, num_classes).bool()
            others = all_classes[~is_target].sqrt().mean().item()
            if lowest == float("inf"):
                original = others
            elif others > lowest and others > options.recovery * original:
                return None
            lowest = min(lowest, others)
            sampled, total = sample_other_class(labels, num_classes, rng), dict[str, torch.Tensor]()
            for rows in chunks:
                loss = sensitivity_difference(new, pixels[rows], labels[rows], sampled[rows]).sum() / len(pixels)
                add_to(total, gradient_of(loss, new))
            return unit(total)

        return descend(model, gradient, options.steps, options.length * norm(parameters(model)).item(), context)


def sensitivity_difference(model: nn.Module, pixels: torch.Tensor, target: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return ||df_c/dx||^2 - ||df_c'/dx||^2 of each photo (n,), differentiable by the weights.

    Args:
        model: A classifier in evaluation mode, so that a photo's logits do not depend on the other photos.
        pixels: x, (n, 3, S, S).
        target: c, (n,).
        other: c', (n,).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    x = pixels.detach().clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        logits = model(pixel_values=x).logits
        by_class = [
            torch.autograd.grad(logits.gather(1, classes.unsqueeze(1)).sum(), x, create_graph=True)[0].flatten(1).square().sum(1)
            for classes in (target, other)
        ]
    return by_class[0] - by_class[1]


def sensitivities(model: nn.Module, pixels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return ||df_c/dx||^2 of each photo and class, (n, C), without a graph."""
    import torch

    x = pixels.detach().clone().requires_grad_()
    logits = model(pixel_values=x).logits
    columns = [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=c + 1 < num_classes)[0] for c in range(num_classes)]
    return torch.stack([column.flatten(1).square().sum(1) for column in columns], dim=1)
