"""Parameter importances from per-photo gradients, and dampening of the parameters that are important for a request above all.

The importance of a parameter theta_i for n photos is

    I_i = 1/n sum_x |d value(x) / d theta_i|^power

where the method chooses `value` and `power`: the loss with power 2 (SSD: the diagonal of the empirical Fisher information), or the squared
norm of the output with power 1 (LFSSD). The power is inside the sum. Applied to a batch's mean gradient instead, the photos' gradients
cancel, the more the larger the batch, and the importances of many training photos and of a few support images are not comparable.
The importances here do not depend on how the photos are split into batches.

Some derivatives are 0 by construction, such as that of an attention's key bias; their computed values are rounding error. Dampening uses
ratios, so it would treat such errors as importances. Values that are this small relative to the largest importance are therefore set to 0.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from oneshui_hf.methods import Context, OneshuiError, Weights, add_up, parameters

LoadBatch = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # positions (m,) -> pixels (m, 3, S, S) and labels (m, ...)
PerImageValue = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # logits (m, K), labels (m, ...) -> one number per photo (m,)
PerImageGradients = Callable[[Weights, torch.Tensor, torch.Tensor], Weights]  # theta, pixels, labels -> a gradient per photo, (m, ...) each

ROUNDING = 8  # derivatives below this many units in the last place of the largest one may be rounding error


def make_per_image_gradients(model: nn.Module, value: PerImageValue, chunk: int) -> PerImageGradients:
    """Return a function that maps theta, pixels (m, 3, S, S) and labels to the gradient of each photo's value, (m, ...) per parameter.

    A chunk of 1 needs only automatic differentiation, so it also works for models that cannot be vectorised.
    """

    def value_of_one(theta: Weights, pixels: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = torch.func.functional_call(model, theta, kwargs={"pixel_values": pixels.unsqueeze(0)}).logits
        return value(logits, label.unsqueeze(0)).sum()

    gradient = torch.func.grad(value_of_one)
    vectorised = torch.func.vmap(gradient, in_dims=(None, 0, 0))

    def differentiate(theta: Weights, pixels: torch.Tensor, labels: torch.Tensor) -> Weights:
        if chunk == 1:
            return {name: part.unsqueeze(0) for name, part in gradient(theta, pixels[0], labels[0]).items()}
        # Fused attention cannot be vectorised. The warning that another operation (of Swin) is slower under vmap is suppressed.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            try:
                return vectorised(theta, pixels, labels)
            except RuntimeError as error:  # an operation without a vmap rule, a branch on a value, or out of memory
                reason = str(error).partition("\n")[0]
                raise OneshuiError(
                    f"{type(model).__name__} cannot be differentiated for {chunk} photos at once ({reason}); "
                    "use a smaller --chunk, down to 1."
                ) from error

    return differentiate


def parameter_importances(
    model: nn.Module,
    load: LoadBatch,
    positions: torch.Tensor,
    value: PerImageValue,
    power: int,
    chunk: int,
    context: Context,
    differentiate: Callable[[nn.Module, PerImageValue, int], PerImageGradients] = make_per_image_gradients,
) -> Weights:
    """Return the importance of every parameter, by name and in its shape. Processes share the photos.

    Args:
        model: The classifier; it is not changed, and dropout is off.
        load: Returns the photos at given positions.
        positions: Positions of the photos to use, (n,).
        value: The quantity that is differentiated, per photo.
        power: Exponent of the absolute derivatives, applied before the mean.
        chunk: Photos that are differentiated at once.
        context: Provides the processes and the progress bar.
        differentiate: Maps model, value and chunk to the function that computes each photo's gradient.

    Raises:
        OneshuiError: The model cannot be differentiated in chunks, or a gradient is not finite.
    """
    theta = parameters(model)
    gradients = differentiate(copy.deepcopy(model).eval(), value, chunk)
    sums = {name: torch.zeros_like(parameter) for name, parameter in theta.items()}

    def add(batch: torch.Tensor) -> None:
        for name, part in gradients(theta, *load(batch)).items():
            sums[name] += part.abs().pow(power).sum(dim=0)

    add_up(context, "importances", positions.split(chunk), sums, add, "Measuring importances")
    means = {name: context.accelerator.reduce(part, "sum") / len(positions) for name, part in sums.items()}
    largest = torch.stack([part.max() for part in means.values()]).max()
    if not largest.isfinite():
        raise OneshuiError("A gradient on these photos is not finite, so importances cannot be computed; check the model's weights.")
    floor = largest * (ROUNDING * torch.finfo(largest.dtype).eps) ** power
    return {name: torch.where(part > floor, part, 0.0) for name, part in means.items()}


def dampen(
    model: nn.Module, train: Mapping[str, torch.Tensor], support: Mapping[str, torch.Tensor], selection: float, dampening: float
) -> tuple[nn.Module, int]:
    """Return a copy whose parameters are dampened where they are far more important for the support images than for the training set.

    Where I_support > selection * I_train:  theta <- min(dampening * I_train / I_support, 1) * theta  (Foster et al. 2024, SSD).

    Args:
        model: The original model.
        train: I_train, by parameter name.
        support: I_support, by parameter name.
        selection: alpha of the paper.
        dampening: lambda of the paper.

    Returns:
        The copy, and the number of its entries that were dampened.

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
            i_train, i_support = train[name].to(parameter), support[name]
            # An unused parameter gives 0 / 0 here, but it is not selected, since 0 > 0 is false.
            factor = torch.where(i_support > selection * i_train, dampening * i_train / i_support, 1.0).clamp(max=1.0)
            parameter.mul_(factor)
            count += int((factor < 1).sum())
    return new, count
