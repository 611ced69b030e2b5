"""Models whose parameters are divided over the processes (FSDP2): their whole tensors for checkpoints, and the way back.

Each parameter is a `DTensor` then. All processes call these functions together, since they exchange the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ...methods.weight_space import Weights


def divides_model(accelerator: Accelerator) -> bool:
    """Whether `accelerator.prepare` divides a model over the processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> Weights:
    """Return tensors that are divided as whole ones on the CPU; others as they are."""
    return {name: _whole(tensor) for name, tensor in tensors.items()}


def whole_moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer with whole tensors, see `whole_tensors`."""
    state = optimizer.state_dict()
    return state | {"state": {index: _whole_values(values) for index, values in state["state"].items()}}


def load_moments(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
    """Give an optimizer its state, as whole tensors by the number of the parameter. Each process keeps its parts.

    Raises:
        ValueError: The state is that of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        index: {name: _part(value, parameters[index]) if index < len(parameters) else value for name, value in values.items()}
        for index, values in state.items()
    }
    optimizer.load_state_dict({"state": parts, "param_groups": optimizer.state_dict()["param_groups"]})


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().cpu() if hasattr(tensor, "full_tensor") else tensor


def _whole_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _whole(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}


def _part(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor that belongs to a parameter; a number, such as that of the steps, is not divided."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
