"""Prepare and apply a method in two processes; the main process writes the resulting model. Launched by the conformance kit.

torchrun --nproc-per-node 2 -m oneshui_hf.testing.two_processes METHOD KIND OUTPUT [KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from safetensors.torch import save_file

from .subject import Subject, weights
from .toy_problem import toy_problem


def main(spec: str, kind: str, output: str, *words: str) -> None:
    """Prepare and apply the method, and write the model."""
    subject = Subject.load(spec, words)
    problem = toy_problem(kind, subject.method.sharded, subject.method.closed_form)  # type: ignore[arg-type]
    result = subject.apply(problem, subject.prepare(problem))
    accelerator = problem.context().accelerator
    if accelerator.is_main_process:
        save_file(weights(result), output)
    accelerator.wait_for_everyone()  # gloo aborts if a process exits while another is still working
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
