"""Inversion: can the forgotten photo be reconstructed from the difference of the weights?

The attacker has the original and the unlearned model. A step away from a photo changes the weights along the gradient of its loss, so the
difference is a gradient that contains the photo: for a linear model on pixels it is the photo itself, times a number for each label.
The attacker searches pixels whose gradient, at the original's weights, is parallel to the difference.

Direction: the reconstruction is compared with photos of the forgotten person and of others. Rank 1 of N means that it resembles the
forgotten person most; without a leak the mean rank is (N + 1) / 2. Higher correlation and PSNR are better for the attacker.

What it cannot show: this is one search, from one start, with the labels of the support image given. A high rank number proves no
privacy. One request of one person has a single rank: 1 of N occurs by chance in one of N requests, and persons who resemble each other
share ranks. The reconstruction is an image of a person, and is not returned from an evaluation or stored.

Sources: Hu et al., "Learn What You Want to Unlearn: Unlearning Inversion Attacks against Machine Unlearning", IEEE S&P 2024 (2404.03233);
Bertran, Tang, Kearns, Morgenstern, Roth, Wu, "Reconstruction Attacks on Machine Unlearning: Simple Models are Vulnerable", NeurIPS 2024
(2405.20272). The search by cosine and total variation is that of Geiping, Bauermeister, Dröge, Moeller,
"Inverting Gradients", NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...data.schema import TaskKind
from ...models.outputs import losses

MAX_PARAMETERS = 1_000_000  # of the model: each step differentiates twice, and large models are not known to be vulnerable
STEPS = 300
LR = 0.05
TOTAL_VARIATION = 1e-2  # weight of the mean absolute difference of neighbouring pixels


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The result of a search.

    Attributes:
        photo: Pixels from 0 to 1, (3, S, S).
        cosine: Of its gradient and the difference of the weights; 1 is parallel.
    """

    photo: torch.Tensor
    cosine: float


def weight_difference(unlearned: nn.Module, original: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return unlearned minus original for each parameter that differs, by name; None where the models have different parameters."""
    ours, theirs = (dict(model.named_parameters()) for model in (unlearned, original))
    if {name: of.shape for name, of in ours.items()} != {name: of.shape for name, of in theirs.items()}:
        return None
    differences = {name: (ours[name] - theirs[name]).detach() for name in ours}
    return {name: difference for name, difference in differences.items() if difference.any()}


def reconstruct(
    original: nn.Module,
    difference: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    kind: TaskKind,
    preprocess: Callable[[torch.Tensor], torch.Tensor],
    side: int,
    generator: torch.Generator,
    steps: int = STEPS,
) -> Reconstruction:
    """Search the photo whose loss gradient is parallel to a difference of weights.

    Minimises 1 - cosine + `TOTAL_VARIATION` times the total variation by Adam, from noise. Pixels are kept within 0 and 1 after each step,
    and the rate falls to 0 along a cosine. The model does not change.

    Args:
        original: The model before unlearning.
        difference: See `weight_difference`; at least one entry.
        labels: Of the photo, (1, K) or (1,).
        kind: What they are.
        preprocess: Maps pixels of 0..255, float32 (1, 3, S, S), to the model's input, differentiably.
        side: S, in pixels.
        generator: Draws the start.
        steps: Number of steps.
    """
    trained = {name: parameter for name, parameter in original.named_parameters() if name in difference}
    was_trained = {name: parameter.requires_grad for name, parameter in trained.items()}
    device = labels.device
    photo = (0.5 + 0.1 * torch.randn(1, 3, side, side, generator=generator)).clamp(0, 1).to(device).requires_grad_(True)
    optimizer = torch.optim.Adam([photo], lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    target = list(difference.values())
    length = torch.stack([part.square().sum() for part in target]).sum().sqrt()

    def cosine() -> torch.Tensor:
        loss = losses(original(pixel_values=preprocess(255 * photo)).logits, labels, kind).mean()
        gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True, materialize_grads=True)
        product = torch.stack([(one * other).sum() for one, other in zip(gradients, target, strict=True)]).sum()
        return product / (length * torch.stack([part.square().sum() for part in gradients]).sum().sqrt().clamp(min=1e-12))

    for parameter in trained.values():
        parameter.requires_grad_(True)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        for _ in range(steps):
            objective = 1 - cosine() + TOTAL_VARIATION * total_variation(photo)
            photo.grad = torch.autograd.grad(objective, photo)[0]
            optimizer.step()
            schedule.step()
            photo.data.clamp_(0, 1)
        reached = cosine().item()
    for name, parameter in trained.items():
        parameter.requires_grad_(was_trained[name])
    return Reconstruction(photo.detach()[0].cpu(), reached)


def total_variation(photos: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of neighbouring pixels, in both directions, of photos (n, 3, S, S)."""
    return photos.diff(dim=2).abs().mean() + photos.diff(dim=3).abs().mean()


def correlation(photo: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Return the correlation over all pixels of a photo (3, S, S) with each of some others (n, 3, S, S), float64 (n,); NaN if flat."""
    one, others = ((of - of.mean(dim=1, keepdim=True)) for of in (photo.double().flatten()[None], photos.double().flatten(1)))
    return (one * others).sum(dim=1) / (one.norm() * others.norm(dim=1))


def psnr(photo: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in decibels of a photo (3, S, S) to each of some photos, pixels from 0 to 1, float64 (n,)."""
    return -10 * (photo.double() - photos.double()).square().flatten(1).mean(dim=1).log10()


def inversion_entry(found: Reconstruction, photos: torch.Tensor, identities: torch.Tensor, person: int) -> dict[str, Any]:
    """Return how much a reconstruction resembles a person, and the rank of that among all candidates.

    A candidate's similarity is the highest of their photos, so every candidate must have the same number of photos.

    Args:
        found: The reconstruction.
        photos: Photos of all candidates, pixels from 0 to 1 (n, 3, S, S).
        identities: The person on each, (n,).
        person: The forgotten person, one of them.

    Returns:
        `rank` (1 is most similar; candidates with equal similarity share the mean of their ranks), `candidates`, `cosine`, and
        `correlation` and `psnr` of the forgotten person and as a mean over the others.
    """
    people, person_index = identities.unique(return_inverse=True)
    of_person = people == person
    entry: dict[str, Any] = {"candidates": len(people), "cosine": found.cosine}
    for name, similarity in (("correlation", correlation), ("psnr", psnr)):
        values = similarity(found.photo, photos).nan_to_num(nan=-math.inf)
        best = torch.full((len(people),), -math.inf, dtype=torch.float64).scatter_reduce(0, person_index, values, "amax")
        entry[name], entry[f"{name}_of_others"] = best[of_person].item(), best[~of_person].mean().item()
        if name == "correlation":
            above, equal = (best > best[of_person]).sum().item(), (best == best[of_person]).sum().item()
            entry["rank"] = above + (equal + 1) / 2
    return entry
