"""JiT (just in time): smooth the model's output around each support image, using only the model and the image.

Foster, Fogarty, Schoepf, Oeztireli, Brintrup: "Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization", 2024
(arXiv 2402.01401). For each image x in turn, n noisy copies give an estimate of the local Lipschitz constant of the logits f,

    penalty(x) = 1/n sum_j ||f(x) - f(x + xi_j)||_2 / ||xi_j||_2,    xi_j ~ N(0, sigma^2),

and theta takes one gradient step that reduces it: theta <- theta - lr * grad penalty(x). Gradients are not accumulated over images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, OneshuiError, generator, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact


@dataclass(frozen=True)
class JiTOptions:
    """Options of JiT."""

    copies: int = option(25, "Noisy copies of each photo.", minimum=1, at="apply")
    lr: float = option(0.01, "Learning rate of the step for each photo.", minimum=0, at="apply", search=(1e-4, 1.0))
    sigma: float = option(
        0.5,
        "Standard deviation of the noise on preprocessed pixels (about -2 to 2); a face is recognisable at 0.5 to 0.8, not at 30.",
        minimum=1e-3,
        at="apply",
        search=(0.1, 0.8),
    )


class JiT(Method[JiTOptions]):
    """One step per photo that reduces the local Lipschitz constant."""

    summary = "smooths the model's output around the support images; needs no other data"
    paper = "Foster et al., Zero-Shot Machine Unlearning at Scale via Lipschitz Regularization, arXiv 2402.01401"
    needs = Needs(apply=frozenset({"support"}))
    options = JiTOptions
    presets = ("oneshui_plugins.presets", "jit.json")
    stochastic = True

    def apply(self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: JiTOptions, context: Context) -> nn.Module:
        """Return the model after one step per support image, in the order of the request."""
        import torch

        from oneshui_hf.methods import norm, parameters

        new = copy.deepcopy(model).eval()
        weights = list(new.parameters())
        penalties = []
        for number, image in enumerate(context.reporter.track(data.support.pixels, "Smoothing", len(data.support))):
            rng = generator(context.seed, "noise", number)
            noise = options.sigma * torch.randn(options.copies, *image.shape, dtype=image.dtype, generator=rng).to(image.device)
            penalty = lipschitz_penalty(new, image, noise)
            gradients = self.gradients(penalty, weights)
            with torch.no_grad():
                for weight, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        weight.sub_(gradient, alpha=options.lr)
            penalties.append(penalty.item())
        if not norm(parameters(new)).isfinite():
            raise OneshuiError(f"JiT's steps produced weights that are not finite; use a smaller --lr than {options.lr:g}.")
        context.report |= {"penalty": sum(penalties) / len(penalties)}
        return new.train(model.training)

    @staticmethod
    def gradients(penalty: torch.Tensor, weights: Sequence[nn.Parameter]) -> Sequence[torch.Tensor | None]:
        """Return the gradient of one photo's penalty by every weight, without accumulation over photos."""
        import torch

        return torch.autograd.grad(penalty, weights, allow_unused=True)


def lipschitz_penalty(model: nn.Module, image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mean over noise xi (n, 3, S, S) of ||f(x) - f(x + xi)||_2 / ||xi||_2, for the logits f at the image x (3, S, S)."""
    import torch

    logits = model(pixel_values=torch.cat([image.unsqueeze(0), image + noise])).logits  # (1 + n, K)
    change = torch.linalg.vector_norm(logits[1:] - logits[:1], dim=1)
    return (change / torch.linalg.vector_norm(noise.flatten(1), dim=1)).mean()
