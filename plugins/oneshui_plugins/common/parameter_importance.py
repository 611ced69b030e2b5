"""How much each parameter matters for some photos, measured photo by photo, and dampening those that matter for a request above all.

The importance of a parameter theta_i for n photos is

    I_i = 1/n sum_x |d value(x) / d theta_i|^power

where `value` and `power` are the method's: the loss, squared (SSD: the diagonal of the empirical Fisher information), or the squared
length of the output, as it is (LFSSD). The power stands inside the sum. Taking it of a batch's mean gradient instead lets the photos'
gradients cancel, the more the larger the batch, so that the importances of many training photos and of a few support photos could not be
compared; here they do not depend on how the photos are cut into batches.

Some derivatives are 0 by construction, such as that of an attention's key bias, and what is computed of them is rounding error. Dampening
looks at ratios, so it would take such errors for importances; what is that small beside the largest importance therefore counts as 0.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import Context, OneshuiError, parameters

Weights = dict[str, torch.Tensor]
Batch = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # from positions (m,) to pixels (m, 3, S, S) and labels (m, ...)
Value = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # from logits (m, K) and labels (m, ...) to one number a photo (m,)
Gradients = Callable[[Weights, torch.Tensor, torch.Tensor], Weights]  # from theta, pixels and labels to a gradient a photo, (m, ...) each

ROUNDING = 8  # units of the last place of the largest derivative, below which a derivative may be rounding error alone


def per_photo(model: nn.Module, value: Value, chunk: int) -> Gradients:
    """Return the function from theta, pixels (m, 3, S, S) and labels to the gradient of each photo's value, (m, ...) a parameter.

    One photo at a time needs nothing but automatic differentiation, so a model that cannot be vectorised is served by chunks of 1.
    """

    def of_one(theta: Weights, photo: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": photo.unsqueeze(0)}).logits
        return value(logits, label.unsqueeze(0)).sum()

    gradient = torch.func.grad(of_one)
    vectorised = torch.func.vmap(gradient, in_dims=(None, 0, 0))

    def of_some(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> Weights:
        if chunk == 1:
            return {name: part.unsqueeze(0) for name, part in gradient(theta, pixels[0], labels[0]).items()}
        # Fused attention cannot be vectorised. Where another operation (of Swin) is slower for it, nobody need be told.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                return vectorised(theta, pixels, labels)
            except RuntimeError as error:  # no rule for an operation, a branch on a value, no memory
                reason = str(error).partition("\n")[0]
                raise OneshuiError(
                    f"{type(model).__name__} cannot be differentiated for {chunk} photos at once ({reason}); "
                    "take a smaller --chunk, down to 1."
                ) from error

    return of_some


def importances(
    model: nn.Module,
    batch: Batch,
    positions: torch.Tensor,
    value: Value,
    power: int,
    chunk: int,
    context: Context,
    differentiate: Callable[[nn.Module, Value, int], Gradients] = per_photo,
) -> Weights:
    """Return the importance of every parameter, by name and in its shape. Processes share the photos.

    Args:
        model: The classifier; it stays as it is, and dropout does not act.
        batch: Gives the photos at some positions.
        positions: Which photos count, (n,).
        value: What is differentiated, for each photo.
        power: What its derivatives' sizes are raised to before the mean.
        chunk: Photos that are differentiated at once.
        context: For the processes and for progress.
        differentiate: From model, value and chunk to the function that gives each photo's gradient.

    Raises:
        OneshuiError: The model cannot be differentiated in chunks, or a gradient is not finite.
    """
    theta = parameters(model)
    gradients = differentiate(copy.deepcopy(model).eval(), value, chunk)
    sums = {name: torch.zeros_like(parameter) for name, parameter in theta.items()}
    for some in context.reporter.track(context.mine(positions.split(chunk)), "Measuring importances"):
        for name, part in gradients(theta, *batch(some)).items():
            sums[name] += part.abs().pow(power).sum(dim=0)
    means = {name: context.accelerator.reduce(part, "sum") / len(positions) for name, part in sums.items()}
    largest = torch.stack([part.max() for part in means.values()]).max()
    if not largest.isfinite():
        raise OneshuiError("A gradient on these photos is not finite, so no importances can be measured; is the model sound?")
    floor = largest * (ROUNDING * torch.finfo(largest.dtype).eps) ** power
    return {name: torch.where(part > floor, part, 0.0) for name, part in means.items()}


def dampened(
    model: nn.Module, train: Mapping[str, torch.Tensor], support: Mapping[str, torch.Tensor], selection: float, dampening: float
) -> tuple[nn.Module, int]:
    """Return a copy whose parameters are dampened where they matter for the support photos far more than for the training set.

    Where I_support > selection * I_train:  theta <- min(dampening * I_train / I_support, 1) * theta  (Foster et al. 2024, SSD).

    Args:
        model: The original model.
        train: I_train, by parameter name.
        support: I_support, by parameter name.
        selection: alpha of the paper.
        dampening: lambda of the paper.

    Returns:
        The copy, and how many numbers in it were dampened.

    Raises:
        OneshuiError: `train` was measured on a model of another shape.
    """
    new = copy.deepcopy(model)
    shapes = {name: parameter.shape for name, parameter in new.named_parameters()}
    if {name: part.shape for name, part in train.items()} != shapes:
        raise OneshuiError("The importances were measured on a model with other parameters than this one; prepare again.")
    count = 0
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            theirs, ours = train[name].to(parameter), support[name]
            # A parameter that is dead on all photos has 0 / 0 here, but is not selected: nothing is greater than itself.
            factor = torch.where(ours > selection * theirs, dampening * theirs / ours, 1.0).clamp(max=1.0)
            parameter.mul_(factor)
            count += int((factor < 1).sum())
    return new, count
