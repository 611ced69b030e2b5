"""Trains, retrains, prepares, unlearns, evaluates and benchmarks on the processes of one launch, with the same global batch.

torchrun --nproc-per-node P tests/support/many_processes.py RUN OUT

The results in OUT do not depend on P, up to the order in which floating-point numbers are added.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import oneshui_hf
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.processes import on_main
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.testing.subject import Subject, weights
from oneshui_hf.testing.toy_problem import toy_problem

BATCH = 32
GRID = """
name: processes
datasets: [{dataset: synthetic, epochs: 1, batch_size: 8, augment: none, keep: last}]
forget: [2]
seeds: [0]
methods: [gradient-ascent]
evaluate: {resamples: 100}
"""
# Options that keep preparation on the toy problem short, for each method that has them.
SHORT = {"steps": "2", "epochs": "1", "calibration": "1", "steps_per_identity": "2", "targets": "quantile", "cohort_size": "2"}


def main(run: str, out: str) -> None:
    """Write everything."""
    accelerator, folder = make_accelerator(), Path(out)
    share = BATCH // accelerator.num_processes
    recipe = {"dataset": "synthetic", "forget": 2, "epochs": 2, "augment": "none", "keep": "last", "lr": 0.05}
    trained = oneshui_hf.train(**recipe, batch_size=share, output_dir=str(folder / "trained"))
    oneshui_hf.retrain(trained, output_dir=str(folder / "retrained"))
    on_main(accelerator, lambda: shutil.copytree(run, folder / "evaluated"))
    oneshui_hf.evaluate(str(folder / "evaluated"))
    on_main(accelerator, lambda: (folder / "grid.yaml").write_text(GRID))
    done = oneshui_hf.benchmark(str(folder / "grid.yaml"), output_dir=str(folder / "benchmark"))
    assert not done["failed"], done["failed"]
    for name in Plugins(METHODS).names:
        save_method(name, folder / f"{name}.safetensors")
    accelerator.wait_for_everyone()  # gloo aborts if a process exits while another is still working
    accelerator.end_training()


def save_method(name: str, file: Path) -> None:
    """Prepare and apply a method to the toy problem; write the tensors that it prepared, and the new weights."""
    method = Plugins(METHODS).load(name)
    words = [f"{key}={value}" for key, value in SHORT.items() if key in method.options.__dataclass_fields__]
    subject = Subject.load(name, words)
    kind = "single_label" if method.classes_only else "multi_label"
    problem = toy_problem(kind, method.sharded, method.closed_form)
    artefact = subject.prepare(problem)
    found = {f"weights/{key}": tensor for key, tensor in weights(subject.apply(problem, artefact)).items()}
    if artefact is not None:
        found |= {f"artefact/{key}": tensor for key, tensor in artefact.tensors.items()}
        found |= {f"people/{person}/{key}": part for person, parts in artefact.people.items() for key, part in parts.items()}
    if problem.context().accelerator.is_main_process:
        save_file({key: torch.as_tensor(tensor).contiguous() for key, tensor in found.items()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
