"""The state within an epoch that no name of a random stream restores: dropout's generators, and the sum of the losses so far."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from ...methods.weight_space import Weights

LOSS, CPU, DEVICE = "loss", "cpu", "device"


def gather_state(total: torch.Tensor, accelerator: Accelerator) -> Weights:
    """Return the state of all processes, one row per process.

    Args:
        total: Sum of the losses of this process's photos in this epoch.
        accelerator: The processes.
    """
    state = {LOSS: total.detach().clone(), CPU: torch.get_rng_state()}
    if accelerator.device.type != "cpu":
        state[DEVICE] = torch.get_device_module(accelerator.device).get_rng_state()
    return {name: accelerator.gather(tensor.to(accelerator.device).unsqueeze(0)).cpu() for name, tensor in state.items()}


def restore_state(state: Weights, accelerator: Accelerator) -> torch.Tensor:
    """Restore the generators of this process; return the sum of the losses of its photos in this epoch."""
    process = accelerator.process_index
    torch.set_rng_state(state[CPU][process].clone())  # of a row of a larger tensor, it reads the first bytes of the memory
    if accelerator.device.type != "cpu" and DEVICE in state:
        torch.get_device_module(accelerator.device).set_rng_state(state[DEVICE][process].clone())
    return state[LOSS][process].clone().to(accelerator.device)


def process_count(state: Weights) -> int:
    """Return how many processes wrote a state."""
    return len(state[LOSS])
