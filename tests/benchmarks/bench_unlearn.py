"""Duration of one request, from the start of the command to the new model on disk, for every one-shot method.

The model is the demo's. The floor is a process that only imports torch and transformers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import oneshui_hf
from oneshui_hf.methods import Method
from oneshui_hf.plugins import METHODS, Plugins

QUICK = {"metaunlearn": {"steps": 3}}  # options of a short preparation; the request takes as long


def run_timed(*words: object) -> tuple[float, str]:
    """Run a Python command; return its duration in seconds, and its output."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = oneshui_hf.train(dataset="synthetic", forget=4, epochs=2, keep="last", output_dir=str(folder / "run"))
        photo = folder / "face.png"
        _write_photo(photo)
        floor = min(run_timed("-c", "import torch, transformers.modeling_utils")[0] for _ in range(2))
        print(f"\n{'one photo, the demo model':<28}{'process s':>10}{'floor s':>9}{'ratio':>7}{'method s':>10}")
        for name in Plugins(METHODS).names:
            method: type[Method] = Plugins(METHODS).load(name)
            if not method.needs.one_shot or method.sharded or method.closed_form or method.classes_only:
                continue
            if method.prepares != "never":
                oneshui_hf.prepare(run, method=name, **({"calibration": 1} if method.prepares == "optional" else QUICK.get(name, {})))
            words = ("-m", "oneshui_hf", "unlearn", "--run", run.path, "--method", name, "--image", photo, "--json", "--overwrite")
            seconds, out = min(run_timed(*words, "--output-dir", folder / "new") for _ in range(2))
            print(f"{name:<28}{seconds:>10.1f}{floor:>9.1f}{seconds / floor:>7.2f}{json.loads(out)['report']['seconds']:>10.3f}")


def _write_photo(file: Path) -> None:
    """Write a random colour photo whose size differs from the model's input."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (320, 240, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


if __name__ == "__main__":
    main()
