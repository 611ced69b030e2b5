"""What preparing forget keys costs as people become more, and what using them costs, as ratios within one run.

python tests/benchmarks/bench_forget_keys.py

The model is the tiny one as it is drawn, on generated faces; processor seconds.
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
from oneshui_hf.models.load import new_model
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

PEOPLE, STRANGERS = (4, 8, 16, 32), 12
TOGETHER = 16  # people of the comparison with one after the other
KEYS = (1, 5, 20)
REPEATS = 5
OPTIONS = ForgetKeysOptions()


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds: what else runs on the machine does not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


class Bench:
    """The tiny model, and generated people: the last ones are strangers."""

    def __init__(self) -> None:
        faces = load_faces("synthetic")
        self.model, preprocess = new_model("tiny", faces.task, None, 0)
        self.model.eval()
        faces, pixels = load_pixels(faces, preprocess.size)
        identities = torch.from_numpy(faces.identities)
        self.all = FaceSet(pixels, faces.stored, faces.labels, identities, preprocess, tuple(faces.people))
        self.context = Context(faces.task, 0, make_accelerator(), request_size=1)

    def people(self, first: int, end: int) -> FaceSet:
        """Return the photos of the people of these numbers."""
        return self.all.subset(torch.cat([self.all.positions_of[person] for person in range(first, end)]))

    def data(self, people: int) -> DataAccess:
        """Return a training set of so many people, and the strangers."""
        last = len(self.all.people)
        return DataAccess({"train": self.people(0, people), "val": self.people(last - STRANGERS, last)}, ForgetKeys.needs.prepare)

    def prepare(self, people: int, options: ForgetKeysOptions = OPTIONS) -> Artefact:
        """Make the keys of so many people."""
        return ForgetKeys().prepare(self.model, self.data(people), options, self.context)

    def counted(self, people: int) -> tuple[float, Artefact]:
        """Return how many photos preparing passes forward and backward, counted at the model's door, and the keys."""
        passed = 0

        def count(module: torch.nn.Module, arguments: Any, values: dict[str, Any]) -> None:
            nonlocal passed
            if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
                passed += len(values["pixel_values"])

        hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            artefact = self.prepare(people)
        finally:
            hook.remove()
        return passed, artefact

    def apply(self, people: list[str], artefact: Artefact) -> None:
        """Forget these people."""
        request = Request(torch.zeros(len(people), 3, 1, 1), tuple(people), torch.zeros(len(people), 1), labels_given=False)
        ForgetKeys().apply(self.model, DataAccess({"support": request}, ForgetKeys.needs.apply), artefact, OPTIONS, self.context)


def growing(bench: Bench) -> Artefact:
    """Print what a key costs as people become more; return the keys of the largest set."""
    print("people | photos | s a person | ratio | passes of the whole set for 10 people: told | counted", flush=True)
    bench.prepare(2)  # the first pass of a process is slower
    first = 0.0
    for people in PEOPLE:
        data = bench.data(people)
        photos, passed = len(data.train), 0.0
        started = time.process_time()
        passed, artefact = bench.counted(people)
        each = (time.process_time() - started) / people
        first = first or each
        told = ForgetKeys().cost(bench.model, data, OPTIONS, bench.context).backward
        row = f"{people:6d} | {photos:6d} | {each:10.2f} | {each / first:5.2f}"
        print(f"{row} | {10 * told / people / photos:44.1f} | {10 * passed / people / photos:7.1f}", flush=True)
    return artefact


def company(bench: Bench) -> None:
    """Print what learning in company saves beside learning one person after the other."""
    alone = dataclasses.replace(OPTIONS, together=1, cohort=1)
    one, many = (seconds(lambda options=options: bench.prepare(TOGETHER, options)) / TOGETHER for options in (alone, OPTIONS))  # type: ignore[misc]
    print(f"{TOGETHER} people one after the other {one:.2f} s each, many at once {many:.2f} s each: {one / many:.2f} times")


def using(bench: Bench, artefact: Artefact) -> None:
    """Print what using keys costs."""
    first = 0.0
    for keys in KEYS:
        asking = sorted(artefact.people)[:keys]
        taken = min(seconds(lambda asking=asking: bench.apply(asking, artefact)) for _ in range(REPEATS))  # type: ignore[misc]
        first = first or taken
        print(f"applying {keys:2d} keys: {1000 * taken:.1f} ms, {taken / first:.2f} times one")


if __name__ == "__main__":
    torch.set_num_threads(1)
    bench = Bench()
    artefact = growing(bench)
    company(bench)
    using(bench, artefact)
