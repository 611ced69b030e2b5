"""Train in two CPU processes, with the whole model in each or divided with torch's `fully_shard`. Launched by the distributed tests.

Accelerate does not run FSDP on CPUs. So its `prepare` is replaced by what it does on GPUs: the blocks and the model are divided, and the
optimizer gets the new parameters. The rest is the training of the command.

torchrun --nproc-per-node 2 tests/support/divided_training.py ddp|fsdp OPTIONS [STEP]

OPTIONS are those of `train`, as JSON. With STEP, the training is stopped after that many steps, by a signal to one process.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from oneshui_hf.options import resolve
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.train import train
from oneshui_hf.stages.training import loop


class DividingAccelerator(Accelerator):  # type: ignore[misc]
    """Divides models over CPU processes."""

    divides = False

    @property
    def distributed_type(self) -> DistributedType:
        """FSDP, once the processes are connected."""
        return DistributedType.FSDP if self.divides else super().distributed_type

    def prepare(self, *parts: Any, **_: Any) -> Any:
        """Divide a model and give its optimizer the new parameters."""
        model, optimizer = parts
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        kept = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
        mesh = init_device_mesh("cpu", (self.num_processes,))
        for module in list(model.modules()):
            if isinstance(module, GradientCheckpointingLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert isinstance(model, FSDPModule) and all(isinstance(parameter, DTensor) for parameter in model.parameters())
        new = dict(model.named_parameters())
        for group, wanted in zip(optimizer.param_groups, kept, strict=True):
            group["params"] = [new[name] for name in wanted]
        optimizer.state.clear()
        return model, optimizer


def main(kind: str, values: str, stop_at: int | None) -> None:
    accelerator = DividingAccelerator(cpu=True) if kind == "fsdp" else make_accelerator()
    accelerator.divides = kind == "fsdp"
    assert accelerator.num_processes == 2
    options = resolve(TrainOptions, json.loads(values), "train")
    rate = loop.set_learning_rate

    def send(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int, steps: int) -> None:
        rate(optimizer, options, step, steps)
        if step == stop_at and not accelerator.is_main_process:
            signal.raise_signal(signal.SIGINT)

    loop.set_learning_rate = send
    try:
        train(options, accelerator)
    except KeyboardInterrupt:
        assert stop_at is not None
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
