"""The cost of preparing forget keys for growing numbers of identities, and of merging them, as ratios within one run.

python tests/benchmarks/bench_forget_keys.py

The model is the tiny one with random weights, on generated faces; times are processor seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.load import load_faces
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.methods import Artefact, Context, DataAccess, Request
from oneshui_hf.models.new import new_model
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

IDENTITIES, UNSEEN = (4, 8, 16, 32), 12
JOINT = 16  # identities of the comparison between separate and joint training
KEYS = (1, 5, 20)
REPEATS = 5
OPTIONS = ForgetKeysOptions(targets="quantile")


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor seconds of some work, which do not depend on other processes."""
    started = time.process_time()
    work()
    return time.process_time() - started


class Benchmark:
    """The tiny model and generated identities, of which the last ones are unseen."""

    def __init__(self) -> None:
        faces = load_faces("synthetic")
        self.model, preprocess = new_model("tiny", faces.task, None, 0)
        self.model.eval()
        faces, pixels = load_pixels(faces, preprocess.size)
        identities = torch.from_numpy(faces.identities)
        self.all = FaceSet(pixels, faces.arrow_rows, faces.labels, identities, preprocess, tuple(faces.people))
        self.context = Context(faces.task, 0, make_accelerator(), request_size=1)

    def photos_of(self, first: int, end: int) -> FaceSet:
        """Return the photos of the identities with these numbers."""
        return self.all.subset(torch.cat([self.all.positions_of[identity] for identity in range(first, end)]))

    def data(self, identities: int) -> DataAccess:
        """Return a training set of so many identities, and the unseen ones."""
        last = len(self.all.people)
        sets = {"train": self.photos_of(0, identities), "val": self.photos_of(last - UNSEEN, last)}
        return DataAccess(sets, ForgetKeys.needs.prepare)

    def prepare(self, identities: int, options: ForgetKeysOptions = OPTIONS) -> Artefact:
        """Train the keys of so many identities."""
        return ForgetKeys().prepare(self.model, self.data(identities), options, self.context)

    def prepare_and_count(self, identities: int) -> tuple[float, Artefact]:
        """Return how many photos pass forward and backward in a preparation, counted at the model's input, and the keys."""
        passed = 0

        def count(module: torch.nn.Module, arguments: Any, values: dict[str, Any]) -> None:
            nonlocal passed
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                passed += len(values["pixel_values"])

        hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            artefact = self.prepare(identities)
        finally:
            hook.remove()
        return passed, artefact

    def apply(self, people: list[str], artefact: Artefact) -> None:
        """Unlearn these identities."""
        request = Request(torch.zeros(len(people), 3, 1, 1), tuple(people), torch.zeros(len(people), 1), labels_given=False)
        ForgetKeys().apply(self.model, DataAccess({"support": request}, ForgetKeys.needs.apply), artefact, OPTIONS, self.context)


def print_preparation_cost(benchmark: Benchmark) -> Artefact:
    """Print the cost of a key for growing numbers of identities; return the keys of the largest set."""
    print("identities | photos | s per key | ratio | passes of the whole set for 10 identities: estimated | counted", flush=True)
    benchmark.prepare(2)  # the first pass of a process is slower
    first = 0.0
    for identities in IDENTITIES:
        data = benchmark.data(identities)
        photos = len(data.train)
        started = time.process_time()
        passed, artefact = benchmark.prepare_and_count(identities)
        each = (time.process_time() - started) / identities
        first = first or each
        estimated = ForgetKeys().cost(benchmark.model, data, OPTIONS, benchmark.context).backward
        row = f"{identities:10d} | {photos:6d} | {each:9.2f} | {each / first:5.2f}"
        print(f"{row} | {10 * estimated / identities / photos:53.1f} | {10 * passed / identities / photos:7.1f}", flush=True)
    return artefact


def print_joint_training_speedup(benchmark: Benchmark) -> None:
    """Print how much faster keys are trained jointly than one after the other."""
    separately = dataclasses.replace(OPTIONS, identities_per_step=1, cohort_size=1)
    separate, joint = (
        processor_seconds(lambda options=options: benchmark.prepare(JOINT, options)) / JOINT  # type: ignore[misc]
        for options in (separately, OPTIONS)
    )
    print(f"{JOINT} keys trained separately {separate:.2f} s each, jointly {joint:.2f} s each: {separate / joint:.2f} times")


def print_merging_cost(benchmark: Benchmark, artefact: Artefact) -> None:
    """Print the time to merge keys."""
    first = 0.0
    for keys in KEYS:
        people = sorted(artefact.people)[:keys]
        seconds = min(processor_seconds(lambda people=people: benchmark.apply(people, artefact)) for _ in range(REPEATS))  # type: ignore[misc]
        first = first or seconds
        print(f"applying {keys:2d} keys: {1000 * seconds:.1f} ms, {seconds / first:.2f} times one")


if __name__ == "__main__":
    torch.set_num_threads(1)
    benchmark = Benchmark()
    artefact = print_preparation_cost(benchmark)
    print_joint_training_speedup(benchmark)
    print_merging_cost(benchmark, artefact)
