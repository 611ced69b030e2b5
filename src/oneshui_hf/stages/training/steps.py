"""Properties of a model that decide how a training step is made: batch normalisation, and parameters that classification does not use."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...seeding import seeded


def use_running_statistics(model: nn.Module) -> None:
    """Let batch normalisation use its running statistics until the model is set to training mode again.

    For a step with one photo, such as the last one of an epoch: the statistics of one photo are none, and PyTorch refuses to compute them
    where a layer has one value per channel. Models without batch normalisation are left unchanged.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def has_unused_parameters(model: nn.Module, size: int) -> bool:
    """Return whether some trained parameters have no influence on the logits, or may have none in some steps.

    One forward and backward pass of two black photos shows it. The model and the global random state are left unchanged.
    """
    if any(getattr(module, "layerdrop", 0) for module in model.modules()):  # layers are left out at random
        return True
    training = model.training
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch normalisation changes them
    pixels = torch.zeros(2, 3, size, size, device=parameters[0].device)
    with seeded(0, "unused parameters"):
        logits = torch.func.functional_call(model.train(), buffers, kwargs={"pixel_values": pixels}).logits
    model.train(training)
    return any(gradient is None for gradient in torch.autograd.grad(logits.sum(), parameters, allow_unused=True))
