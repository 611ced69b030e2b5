"""Train a head in closed form, retrain it without the forget identities, prepare the exact method and unlearn them; launched or called.

torchrun --nproc-per-node 2 tests/support/exact_head_pipeline.py RECIPE
"""

from __future__ import annotations

import json
import sys
from typing import Any

import oneshui_hf
from oneshui_hf.stages.distributed import make_accelerator


def main(recipe: dict[str, Any]) -> None:
    """Write the run `output_dir`, and next to it those of the oracle and of the method."""
    accelerator = make_accelerator()
    run = oneshui_hf.train(**recipe, head="closed-form")
    oneshui_hf.retrain(run)
    oneshui_hf.prepare(run, method="exact-head", face_encoder="none")
    oneshui_hf.unlearn(run, method="exact-head", from_split=True)
    accelerator.wait_for_everyone()  # gloo aborts if a process exits while another is still working
    accelerator.end_training()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
