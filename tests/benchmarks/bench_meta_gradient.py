"""Memory and time of one meta-gradient step, compared with the double-backward formulation, at growing numbers of forget images.

    python tests/benchmarks/bench_meta_gradient.py
    python tests/benchmarks/bench_meta_gradient.py --forget 32 --alone --repeats 1

Double backward keeps the activations of all forget and val images for two differentiations. Ours differentiates them once, in chunks.
Each measurement is the peak of a separate process, and its processor seconds; the two sides alternate, and the lowest of the repeats
counts. The model is a ViT-Ti/16 at 224 pixels from scratch; 20 support images; float32. That the gradients are the same is checked.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = 20
TI = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}  # and 12 blocks, 224 pixels
SIDES = ("ours", "double-backward")
MEMORY, TIME, GROWTH = 0.15, 0.6, 0.05  # aims: ours / double backward; growth of the memory of ours


def one_step(kind: str, forget: int, file: Path) -> None:
    """Do one step, write its gradient, and print the peak memory in MB, processor seconds and seconds."""
    from meta_step import double_backward, make_problem, ours
    from safetensors.torch import save_file

    problem = make_problem(TI, SUPPORT, forget)
    started, processor = time.perf_counter(), time.process_time()
    gradient = (ours if kind == "ours" else double_backward)(problem)
    taken = time.process_time() - processor, time.perf_counter() - started
    save_file({"gradient": gradient.detach()}, file)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, *taken)


def measure(forget: int, sides: tuple[str, ...], repeats: int, scratch: Path) -> dict[str, list[float]]:
    """Return, for each side, the lowest memory, processor seconds and seconds of its repeats."""
    from meta_step import require_same
    from safetensors.torch import load_file

    found: dict[str, list[list[float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            command = [sys.executable, __file__, "--one", side, str(forget), str(scratch / side)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{side} at {forget} images failed:\n{done.stderr[-2000:]}")
            found[side].append([float(word) for word in done.stdout.split()])
    if len(sides) == 2:
        require_same(*(load_file(scratch / side)["gradient"] for side in sides))
    return {side: [min(column) for column in zip(*rows, strict=True)] for side, rows in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--forget", nargs="*", type=int, default=[32, 128], help="Numbers of forget images, of both sides.")
    parser.add_argument("--alone", nargs="*", type=int, default=[512], help="Numbers of forget images of ours alone.")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.one:
        one_step(given.one[0], int(given.one[1]), Path(given.one[2]))
        return
    memory: dict[int, float] = {}
    print("forget | ours MB | double backward MB | ratio | ours s | double backward s | ratio (processor seconds)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for forget in given.forget:
            rows = measure(forget, SIDES, given.repeats, Path(scratch))
            a, b = (rows[side] for side in SIDES)
            memory[forget] = a[0]
            ratio, slower = a[0] / b[0], a[1] / b[1]
            print(f"{forget:6d} | {a[0]:7.0f} | {b[0]:18.0f} | {ratio:5.2f} | {a[1]:6.1f} | {b[1]:17.1f} | {slower:5.2f}", flush=True)
            if forget >= 128 and ratio > MEMORY:
                raise SystemExit(f"Ours needs {ratio:.2f} of the memory, not at most {MEMORY}.")
        for forget in given.alone:
            (a,) = measure(forget, ("ours",), given.repeats, Path(scratch)).values()
            memory[forget] = a[0]
            print(f"{forget:6d} | {a[0]:7.0f} | {'-':>18} | {'-':>5} | {a[1]:6.1f} | {'-':>17} | {'-':>5}", flush=True)
    if {128, 512} <= memory.keys():
        growth = memory[512] / memory[128] - 1
        print(f"From 128 to 512 forget images the memory of ours changes by {growth:+.1%}.")
        if growth > GROWTH:
            raise SystemExit(f"It grew by more than {GROWTH:.0%}.")


if __name__ == "__main__":
    main()
