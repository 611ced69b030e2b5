"""What one GPU reaches: training, evaluation, a step of MetaUnlearn, forget keys, float16, two processes on one card. Prints a JSON table.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --smoke

Weights and pixels are random, so nothing is downloaded. A rate is also given as a share of the rate at which the card multiplies large
matrices in the same precision, measured in the same run; a training step counts as three forward passes. `--smoke` runs the same code at
tiny sizes, on any machine. A part that fails is reported, the others run nevertheless, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from meta_step import IDENTITIES, TASK, double_backward, make_problem, ours, random_faces, random_vit, require_same
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.memory import PeakMemory
from oneshui_hf.methods import Context, DataAccess
from oneshui_hf.models.outputs import predict
from oneshui_hf.progress import Entry, TrainingProgress
from oneshui_hf.reporting import Reporter
from oneshui_hf.stages.command_options import TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.training.loop import fit
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

REPEATS = 10  # of a matrix product
ROUNDING = {"cpu": 1e-3, "cuda": 2e-2}  # relative difference of equal gradients; convolutions of GPUs round to TF32
WARM_UP = 3  # steps of a training that are not timed; compilation is one of them


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        shape: Of the ViT, besides the defaults of `ViTConfig`, which are those of ViT-B/16 at 224 pixels.
        matrix: Side of the matrices whose product gives the card's rate.
        batch: Photos of a training step and of an evaluation batch.
        steps: Steps of a training, `WARM_UP` included.
        evaluated: Photos of the evaluation.
        stored: Different photos in memory; sets repeat them.
        support: Support images of MetaUnlearn's step.
        forget: Forget images of that step.
        people: People whose keys are trained.
        photos: Photos of each person.
    """

    shape: dict[str, int]
    matrix: int = 8192
    batch: int = 256
    steps: int = 33
    evaluated: int = 4096
    stored: int = 1024
    support: int = 20
    forget: int = 128
    people: int = 64
    photos: int = 8


FULL = Sizes(shape={})
TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
SMOKE = Sizes(TINY_VIT, matrix=64, batch=4, steps=5, evaluated=8, stored=8, support=3, forget=6, people=4, photos=2)


class StepTimer(Reporter):
    """Times the steps of a training after the first ones.

    Attributes:
        seconds: Of a step, once the training has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._started, self.seconds = device, 0.0, float("nan")

    @contextlib.contextmanager
    def training(self, epochs: int, steps: int, first: int = 0) -> Iterator[TrainingProgress]:
        """Yield the object that counts the steps."""
        progress = TrainingProgress(epochs, steps, first, time.monotonic)
        progress.listeners.append(self._note)
        yield progress

    def _note(self, progress: TrainingProgress, entry: Entry | None) -> None:
        if entry is None and progress.done == WARM_UP:
            self._started = now(self._device)
        elif entry is None and progress.done == progress.total:
            self.seconds = (now(self._device) - self._started) / (progress.total - WARM_UP)


def now(device: torch.device) -> float:
    """Return the time in seconds at which the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Card:
    """The measurements. Each method returns numbers of the table."""

    def __init__(self, sizes: Sizes, accelerator: Accelerator, smoke: bool) -> None:
        self.sizes, self.accelerator, self.device, self.smoke = sizes, accelerator, accelerator.device, smoke
        self.rates = {dtype: self._matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
        self.forward_flops = self._forward_flops()

    def _matrix_rate(self, dtype: torch.dtype) -> float:
        """Return the operations per second of a product of large matrices."""
        n = self.sizes.matrix
        a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
        for _ in range(WARM_UP):
            a @ b
        started = now(self.device)
        for _ in range(REPEATS):
            a @ b
        return 2 * n**3 * REPEATS / (now(self.device) - started)

    def _forward_flops(self) -> int:
        """Return the operations of the matrix products of one photo's forward pass."""
        model = random_vit(self.sizes.shape).to("meta")
        side = model.config.image_size
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(pixel_values=torch.zeros(1, 3, side, side, device="meta"))
        return int(counter.get_total_flops())

    def _faces(self, photos: int, people: int = IDENTITIES) -> FaceSet:
        """Return photos that are in memory."""
        side = random_vit(self.sizes.shape).config.image_size
        store = np.random.default_rng(0).integers(0, 256, (self.sizes.stored, 3, side, side), dtype=np.uint8)
        faces = random_faces(photos, side, people)
        return FaceSet(
            store, np.arange(photos) % len(store), faces.labels, torch.arange(photos) * people // photos, Preprocess(side), faces.people
        )

    def train(self, **options: Any) -> dict[str, Any]:
        """Train with the training loop; return images per second of one process, and the share of the matrix rate."""
        sizes, timer = self.sizes, StepTimer(self.device)
        processes = self.accelerator.num_processes
        recipe = TrainOptions(dataset="random", batch_size=sizes.batch, epochs=1, keep="last", warmup_epochs=0, **options)
        model = random_vit(sizes.shape).to(self.device)
        faces, val = self._faces(sizes.batch * sizes.steps * processes), self._faces(sizes.batch)
        with tempfile.TemporaryDirectory() as scratch, PeakMemory(self.device) as peak:
            report = fit(model, faces, val, TASK, recipe, 0, Path(scratch), self.accelerator, timer, validate="last")
        rate = sizes.batch / timer.seconds
        precision = str(report.get("precision", "float32"))
        share = 3 * self.forward_flops * rate / self.rates[getattr(torch, precision)]
        loss = report["history"][-1]["train_loss"]
        return {"images_per_second": rate, "precision": precision, "share_of_matrix_rate": share, "peak_mb": peak.mb, "loss": loss}

    def evaluate(self) -> dict[str, Any]:
        """Evaluate, which computes in full precision."""
        model, faces = random_vit(self.sizes.shape).to(self.device), self._faces(self.sizes.evaluated)
        predict(model, faces.subset(torch.arange(self.sizes.batch)), self.accelerator, self.sizes.batch)
        started = now(self.device)
        predict(model, faces, self.accelerator, self.sizes.batch)
        rate = len(faces) / (now(self.device) - started)
        share = self.forward_flops * rate / self.rates[torch.float32]
        return {"images_per_second": rate, "precision": "float32", "share_of_matrix_rate": share}

    def meta_step(self) -> dict[str, Any]:
        """Compare a step of MetaUnlearn with double backward, at as many forget images as double backward has memory for."""
        forget = self.sizes.forget
        while True:
            try:
                return {"forget_images": forget} | self._compare_meta_step(forget)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                forget //= 2
                if forget < 1:
                    raise

    def _compare_meta_step(self, forget: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        gradients = []
        for name, step in (("ours", ours), ("double_backward", double_backward)):
            problem = make_problem(self.sizes.shape, self.sizes.support, forget, self.device)
            step(problem)
            with PeakMemory(self.device) as peak:
                started = now(self.device)
                gradients.append(step(problem))
                found |= {f"{name}_seconds": now(self.device) - started}
            found[f"{name}_mb"] = peak.mb
        require_same(*gradients, tolerance=ROUNDING[self.device.type])
        found["time_ratio"] = found["ours_seconds"] / found["double_backward_seconds"]
        if found["ours_mb"] and found["double_backward_mb"]:
            found["memory_ratio"] = found["ours_mb"] / found["double_backward_mb"]
        return found

    def keys(self) -> dict[str, Any]:
        """Train the keys of some people."""
        sizes = self.sizes
        model = random_vit(sizes.shape).to(self.device)
        train, val = self._faces(sizes.people * sizes.photos, sizes.people), self._faces(sizes.people, sizes.people)
        context = Context(TASK, 0, self.accelerator, request_size=1)
        data = DataAccess({"train": train, "val": val}, ForgetKeys.needs.prepare)
        started = now(self.device)
        with PeakMemory(self.device) as peak:
            artefact = ForgetKeys().prepare(model, data, ForgetKeysOptions(targets="quantile"), context)
        return {"people": len(artefact.people), "seconds": now(self.device) - started, "peak_mb": peak.mb}

    def two_processes(self) -> dict[str, Any]:
        """Train in two processes that share the card. NCCL refuses that, so they use gloo."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "found.json"
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            words = [*launch, __file__, "--worker", str(file), *(["--smoke"] if self.smoke else [])]
            own = {"ACCELERATE_BYPASS_DEVICE_MAP": "true"} if self.device.type == "cuda" else {"ACCELERATE_USE_CPU": "1"}
            done = subprocess.run(words, env=os.environ | own, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"two processes: {done.stderr[-1000:]}")
            return json.loads(file.read_text())


def run_worker(sizes: Sizes, smoke: bool, file: Path) -> None:
    """Train in one of two processes; the main one writes the result, and that both have the same weights."""
    gloo = [InitProcessGroupKwargs(backend="gloo")] if torch.cuda.is_available() else []
    accelerator = Accelerator(mixed_precision="no", kwargs_handlers=gloo)
    card = Card(replace(sizes, batch=max(sizes.batch // 2, 2)), accelerator, smoke)
    found = card.train()
    losses = accelerator.gather(torch.tensor([found["loss"]], dtype=torch.float64, device=accelerator.device)).tolist()
    if accelerator.is_main_process:
        both = {"images_per_second_of_both": 2 * found.pop("images_per_second"), "same_loss": losses[0] == losses[1]}
        found.pop("share_of_matrix_rate")  # each process measured the rate next to the other
        file.write_text(json.dumps({"processes": accelerator.num_processes, "backend": "gloo"} | both | found))
    accelerator.wait_for_everyone()  # gloo aborts if a process ends while the other works
    accelerator.end_training()


# What is measured, with the aim: (key, limit, whether more is better).
PARTS: dict[str, tuple[Callable[[Card], dict[str, Any]], tuple[tuple[str, float, bool], ...]]] = {
    "train": (lambda card: card.train(), (("share_of_matrix_rate", 0.45, True),)),
    "train --compile": (lambda card: card.train(compile=True), (("share_of_matrix_rate", 0.45, True),)),
    "train --fp16": (lambda card: card.train(fp16=True), ()),
    "evaluate": (Card.evaluate, (("share_of_matrix_rate", 0.6, True),)),
    "metaunlearn step": (Card.meta_step, (("time_ratio", 0.2, False), ("memory_ratio", 0.25, False))),
    "forget-keys": (Card.keys, ()),
    "two processes on one card": (Card.two_processes, ()),
}


def measure(card: Card, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the table: for each part its numbers, its seconds and which aims it meets, or why it failed."""
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        part, aims = PARTS[name]
        started = time.perf_counter()
        try:
            row = part(card)
            row["aims"] = {
                key: {"aim": limit, "met": row[key] >= limit if more else row[key] <= limit} for key, limit, more in aims if key in row
            }
        except Exception as error:  # the others run nevertheless
            row = {"error": f"{type(error).__name__}: {error}"}
        table[name] = row | {"took_seconds": time.perf_counter() - started}
        print(f"{name}: {table[name]['took_seconds']:.0f} s", file=sys.stderr, flush=True)
        if card.device.type == "cuda":
            torch.cuda.empty_cache()
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true", help="Tiny sizes, on any machine.")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS), help="Parts to measure; all by default.")
    parser.add_argument("--output", type=Path, help="File that the table is written to, too.")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = SMOKE if given.smoke else FULL
    if given.worker:
        run_worker(sizes, given.smoke, given.worker)
        return
    if not given.smoke and not torch.cuda.is_available():
        raise SystemExit("No CUDA device was found; --smoke runs tiny sizes on the CPU.")
    card = Card(sizes, make_accelerator(), given.smoke)
    name = torch.cuda.get_device_name(card.device) if card.device.type == "cuda" else platform.machine()
    rates = {str(dtype).removeprefix("torch."): rate / 1e12 for dtype, rate in card.rates.items()}
    about = {"device": name, "torch": torch.__version__, "smoke": given.smoke, "matrix_tflops": rates}
    table = about | {"forward_gflops_per_photo": card.forward_flops / 1e9, "parts": measure(card, given.only)}
    text = json.dumps(table, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    if failed := [part for part, row in table["parts"].items() if "error" in row]:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
