"""Compute one meta-gradient in several processes; the main process writes it. Launched by the distributed tests.

torchrun --nproc-per-node 2 tests/support/two_processes.py RUN OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from oneshui_hf.methods import Context, DataAccess
from oneshui_hf.models.load import load_model
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_plugins.metaunlearn import MetaUnlearnOptions
from oneshui_plugins.metaunlearn.training import MetaLossTrainer, plan_requests


def main(run: Run, output: Path) -> None:
    accelerator = make_accelerator()
    data = DataAccess(open_data(run, accelerator).sets, frozenset({"train", "val"}))
    model, _, task = load_model(run.path)
    context = Context(task, 0, accelerator, request_size=2)
    options = MetaUnlearnOptions(steps=1, requests_per_step=4)
    plan = plan_requests(data, options, context)
    assert len(plan[0]) == 4
    trainer = MetaLossTrainer(model, data, plan, options, context)
    value, parts, (by_length,) = trainer.mean_meta_gradient(plan[0], 0, trainer.step_size([0.05]))
    if accelerator.is_main_process:
        named = {name: part for (name, _), part in zip(trainer.h.named_parameters(), parts, strict=True)}
        tensors = {**named, "value": parts[0].new_tensor(value), "by_length": parts[0].new_tensor(by_length)}
        save_file(tensors, output, metadata={"processes": str(accelerator.num_processes)})
    accelerator.wait_for_everyone()  # gloo aborts if a process exits while another is still working
    accelerator.end_training()


if __name__ == "__main__":
    main(Run.open(sys.argv[1]), Path(sys.argv[2]))
