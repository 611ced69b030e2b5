"""What the kit launches twice at once: prepare and apply, the model written by the main process.

torchrun --nproc-per-node 2 -m oneshui_hf.testing.two_processes METHOD KIND OUTPUT [KEY=VALUE ...]
"""

from __future__ import annotations

import sys

from safetensors.torch import save_file

from .subject import Checked, weights
from .toy_problem import world


def main(spec: str, kind: str, output: str, *words: str) -> None:
    """Prepare and apply, and write the model."""
    checked = Checked.load(spec, words)
    here = world(kind, checked.method.sharded)  # type: ignore[arg-type]
    result = checked.apply(here, checked.prepare(here))
    accelerator = here.context().accelerator
    if accelerator.is_main_process:
        save_file(weights(result), output)
    accelerator.wait_for_everyone()  # gloo aborts a process that leaves while the other is still at work
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
