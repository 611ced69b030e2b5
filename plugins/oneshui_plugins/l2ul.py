"""L2UL, learning to unlearn: misclassify the support images, with adversarial copies of them and the original weights as anchors.

Cha, Cho, Hwang, Lee, Moon, Lee: "Learning to Unlearn: Instance-wise Unlearning for Pre-trained Classifiers", AAAI 2024 (arXiv 2301.11578).
Nothing but the model and the photos to forget is read. Descent reduces

    L = L_forget + mean over copies x' of loss(x', y') + weight * sum_i (1 - O_i) (theta_i - theta0_i)^2

    L_forget    -loss(x, y), or loss(x, y") with another label y" where the goal is to relabel; mean over the photos
    x', y'      x' = x + the perturbation of norm at most epsilon that makes the model predict y', another label than y: a targeted attack
                by projected gradient descent in the L2 norm. It keeps the decision boundary near the photo where it is.
    O_i         importance of a parameter for the photos, mean |d ||f(x)||^2 / d theta_i| with f the logits (memory aware synapses), scaled
                to 0 to 1 within each tensor: parameters that do not matter for the photos stay close to the original theta0

and stops once every photo is misclassified. The paper is for classes. With attributes, our choice: y' and y" flip each attribute with
probability 0.5, at least one of them, so that they are uniform over all other labels, as for classes; and a photo counts as misclassified
if at most half of its attributes are predicted as given.

Perturbations are not clipped to the range of pixels, which the preprocessing determines. `--epsilon` is a root mean square per pixel
value, so that it does not depend on the size of the photos.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from oneshui_hf.methods import Context, DataAccess, Method, Needs, UsageError, generator, option

from .common.descent import DescentOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Request, Task, TaskKind, Weights


@dataclass(frozen=True)
class L2ULOptions(DescentOptions):
    """Options of L2UL."""

    steps: int = option(
        30, "Most gradient steps; fewer are taken once all photos are misclassified.", minimum=1, at="apply", search=(1, 30)
    )
    goal: str = option(
        "misclassify", "Leave the given label, or learn another one.", choices=("misclassify", "relabel"), at="apply", search=True
    )
    copies: int = option(20, "Adversarial copies of each photo.", minimum=0, at="apply")
    epsilon: float = option(
        0.2, "Perturbation of a copy, as root mean square on preprocessed pixels (about -2 to 2).", minimum=0, at="apply"
    )
    attack_steps: int = option(20, "Gradient steps of the attack.", minimum=1, at="apply")
    weight: float = option(1.0, "Factor of the distance from the original weights.", minimum=0, at="apply", search=(0.1, 1e3))
    chunk: int = option(
        4, "Photos differentiated at once; each needs memory of the model's size; no effect on the result.", minimum=1, at="apply"
    )
    batch_size: int = option(64, "Adversarial copies per pass; affects memory, not the result.", minimum=1, at="apply")


class L2UL(Method[L2ULOptions]):
    """Descent on the misclassification loss with two regularisers."""

    summary = "misclassifies the support images; adversarial copies and the weights that matter least for them are anchors"
    paper = "Cha et al., Learning to Unlearn: Instance-wise Unlearning for Pre-trained Classifiers, AAAI 2024"
    needs = Needs(apply=frozenset({"support"}))
    options = L2ULOptions
    stochastic = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: L2ULOptions, context: Context) -> nn.Module:
        """Return the model after some steps down L.

        Raises:
            UsageError: The model has a single class.
            OneshuiError: A gradient or the result is not finite.
        """
        from oneshui_hf.methods import losses, parameters

        from .common.descent import add_to, descend, gradient_of

        request: Request = data.support
        task, kind, seed = context.task, context.task.kind, context.seed
        other = sample_other_labels(request.labels, task, generator(seed, "other labels"))
        anchors = adversarial_copies(model, request, options, context)
        original, stiffness = parameters(model), inverted_importances(model, request, options.chunk, context)

        def gradient(new: nn.Module) -> Weights | None:
            """Return the gradient of L, or None where all photos are misclassified."""
            logits = new(pixel_values=request.pixels).logits
            if are_misclassified(logits.detach(), request.labels, kind).all():
                return None
            relabel = options.goal == "relabel"
            forget = losses(logits, other, kind).mean() if relabel else -losses(logits, request.labels, kind).mean()
            total = gradient_of(forget, new)
            for pixels, labels in zip(anchors.pixels.split(options.batch_size), anchors.labels.split(options.batch_size), strict=True):
                loss = losses(new(pixel_values=pixels).logits, labels, kind).sum() / len(anchors.pixels)
                add_to(total, gradient_of(loss, new))
            moved = {name: stiffness[name] * (weight - original[name]) for name, weight in parameters(new).items()}
            add_to(total, moved, 2 * options.weight)
            return total

        return descend(model, gradient, options.steps, options.lr, context)


class Anchors(NamedTuple):
    """Adversarial copies of the support images: pixels (n * copies, 3, S, S) and the labels that they were made for."""

    pixels: torch.Tensor
    labels: torch.Tensor


def adversarial_copies(model: nn.Module, request: Request, options: L2ULOptions, context: Context) -> Anchors:
    """Return `options.copies` targeted adversarial copies of each photo. The report receives the share of labels that were reached."""
    import torch

    from oneshui_hf.methods import predicted_labels

    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    pixels = request.pixels.repeat_interleave(options.copies, 0)
    labels = sample_other_labels(
        request.labels.repeat_interleave(options.copies, 0), context.task, generator(context.seed, "attacked labels")
    )
    start = torch.randn(pixels.shape, generator=generator(context.seed, "attack"), dtype=pixels.dtype).to(pixels.device)
    made, reached = [], 0.0
    rows = torch.arange(len(pixels)).split(options.batch_size) if len(pixels) else ()
    for batch in context.reporter.track(rows, "Making adversarial copies"):
        made.append(targeted_attack(frozen, pixels[batch], labels[batch], start[batch], options, context.task.kind))
        with torch.no_grad():
            predicted = predicted_labels(frozen(pixel_values=made[-1]).logits, context.task.kind)
        reached += (predicted == labels[batch]).double().mean().item() * len(batch)
    if made:
        context.report |= {"attack_success": reached / len(pixels)}
    return Anchors(torch.cat(made) if made else pixels, labels)


def targeted_attack(
    model: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, start: torch.Tensor, options: L2ULOptions, kind: TaskKind
) -> torch.Tensor:
    """Return x + d with d in the L2 ball of radius epsilon * sqrt(values per photo), by normalised steps down loss(x + d, labels).

    Args:
        model: The original model, in evaluation mode.
        pixels: x, (n, 3, S, S).
        labels: The labels to be predicted.
        start: Any directions, (n, 3, S, S); the attack starts half-way to the surface of the ball.
        options: epsilon and the number of steps.
        kind: The task kind.
    """
    import torch

    from oneshui_hf.methods import losses

    radius = options.epsilon * pixels[0].numel() ** 0.5
    step = 2.5 * radius / options.attack_steps  # far enough to cross the ball
    perturbation = 0.5 * radius * _unit(start)
    for _ in range(options.attack_steps):
        x = (pixels + perturbation).requires_grad_()
        loss = losses(model(pixel_values=x).logits, labels, kind).sum()
        perturbation = perturbation - step * _unit(torch.autograd.grad(loss, x)[0])
        length = _norms(perturbation)
        perturbation = perturbation * (radius / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1.0)
    return pixels + perturbation


def _norms(x: torch.Tensor) -> torch.Tensor:
    """Return the L2 norm of each photo, (n, 1, 1, 1)."""
    return x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Return each photo divided by its norm; a zero photo stays zero."""
    import torch

    return x / _norms(x).clamp(min=torch.finfo(x.dtype).tiny)


def inverted_importances(model: nn.Module, request: Request, chunk: int, context: Context) -> Weights:
    """Return 1 - O: O is mean |d ||f(x)||^2 / d theta| over the photos, scaled to 0 to 1 within each tensor."""
    import torch

    from .common.parameter_importance import parameter_importances

    def squared_norm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.square().sum(dim=1)

    def load(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return request.pixels[rows], request.labels[rows]

    found = parameter_importances(model, load, torch.arange(len(request)), squared_norm, 1, chunk, context)
    return {name: 1 - (part - part.min()) / (part.max() - part.min()).clamp(min=1e-30) for name, part in found.items()}


def sample_other_labels(labels: torch.Tensor, task: Task, rng: torch.Generator) -> torch.Tensor:
    """Return other labels for each photo, all equally likely: another class, or attributes of which at least one is flipped.

    Raises:
        UsageError: There is no other class.
    """
    from .common.label_noise import flip_attributes, sample_other_class

    if task.kind == "multi_label":
        return flip_attributes(labels, rng)
    if len(task.label_names) < 2:
        raise UsageError("The model has a single class, so its photos cannot be misclassified; use another method.")
    return sample_other_class(labels, len(task.label_names), rng)


def are_misclassified(logits: torch.Tensor, labels: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return whether each photo is predicted as another class, or at most half of its attributes are predicted as given, (n,)."""
    from oneshui_hf.methods import predicted_labels

    is_right = predicted_labels(logits, kind) == labels
    return ~is_right if kind == "single_label" else is_right.float().mean(dim=1) <= 0.5
