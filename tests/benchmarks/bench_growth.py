"""How the time and memory of each step grow with the number of photos, and of identities: fitted exponents. 1 is linear.

    python tests/benchmarks/bench_growth.py
    python tests/benchmarks/bench_growth.py --photos 1000 4000 16000 --identities 10 100 --repeats 1

All steps are measured in one process a size: its processor seconds, and how far its peak memory rises above that before the step. The
photos are links to one small JPEG file, and the models are linear, so that what is measured is the work around the model; the predictions
that the evaluation reads are random. With growing photos there are 20 of each identity; with growing identities the number of photos stays.

Small sizes are dominated by what every call costs, so the exponent is fitted to the largest three, by least squares of logarithms. A
step that takes less than a second, or less than 20 MB, at the largest size has none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PHOTOS, IDENTITIES = (1_000, 10_000, 50_000, 200_000), (10, 100, 1_000, 10_000)
FIXED_PHOTOS = 50_000  # with growing identities; at least two of each
PER_IDENTITY, SIDE, CHUNK, REQUESTS, RESAMPLES = 20, 8, 256, 50, 20
LARGEST = 1.05  # exponent
MIN_SECONDS, MIN_MB = 1.0, 20.0
FITTED = 3  # sizes
LINKS = 50_000  # to one file; file systems allow about 65,000


def measure(photos: int, identities: int, scratch: Path) -> dict[str, tuple[float, float]]:
    """Return processor seconds and MB of each step."""
    import numpy as np
    import torch
    from accelerate import Accelerator
    from bench_full_size import write_annotations
    from PIL import Image
    from torch import nn

    from oneshui_hf.data.face_set import face_sets
    from oneshui_hf.data.load import load_faces
    from oneshui_hf.data.pixels import load_pixels
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.data.split import make_split
    from oneshui_hf.memory import PeakMemory
    from oneshui_hf.methods import Artefact, Context, DataAccess, seeded, simulate
    from oneshui_hf.metrics.comparison import Comparison, Predictions, Settings
    from oneshui_hf.metrics.measure import measure as measure_predictions
    from oneshui_hf.models.outputs import losses
    from oneshui_hf.seeding import generator
    from oneshui_hf.sets import PREDICTED
    from oneshui_plugins.ssd import SSD, SSDOptions

    class Linear(nn.Module):
        """Logits that are linear in the pixels."""

        def __init__(self, labels: int) -> None:
            super().__init__()
            self.map = nn.Linear(3 * SIDE * SIDE, labels)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.map(pixel_values.flatten(1)))

    found: dict[str, tuple[float, float]] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        with PeakMemory() as before:
            pass
        started = time.process_time()
        with PeakMemory() as peak:
            result = work()
        found[name] = time.process_time() - started, float((peak.mb or 0) - (before.mb or 0))
        return result

    folder = scratch / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(scratch / "photo.jpg")
    for number in range(1, photos + 1):
        if number % LINKS == 1:
            source = shutil.copy(scratch / "photo.jpg", scratch / f"photo{number}.jpg")
        os.link(source, folder / "img_align_celeba" / f"{number:06d}.jpg")
    write_annotations(folder, photos, identities)

    def index() -> Any:
        return load_faces("celeba", folder)

    faces = step("index", index)

    def split() -> Any:
        made = make_split(faces.photos_by_identity(), seed=0, forget=2)
        sets = face_sets(faces, None, made, Preprocess(SIDE))  # type: ignore[arg-type]
        _ = sets["train"].positions_of
        return made

    made = step("split", split)
    faces, pixels = step("cache", lambda: load_pixels(faces, SIDE))
    sets = face_sets(faces, pixels, made, Preprocess(SIDE))
    with seeded(0, "linear"):
        model = Linear(len(faces.task.label_names)).eval()
    context = Context(faces.task, 0, Accelerator(cpu=True), request_size=1)
    data = DataAccess({"train": sets["train"]}, SSD.needs.prepare)
    step("prepare (ssd)", lambda: SSD().prepare(model, data, SSDOptions(chunk=CHUNK), context))

    def simulated() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from simulate(sets["train"], (1, 1), generator(0, "bench", epoch), unseen=True)

    step(f"prepare ({REQUESTS} requests)", lambda: list(itertools.islice(simulated(), REQUESTS)))

    people = [faces.people[number] for number in sets["train"].positions_of]
    keys = Artefact(people={name: {"key": torch.zeros(256)} for name in people})
    place, vault = scratch / "artefact", scratch / "vault"
    step("prepare (writing keys)", lambda: keys.save(place, "keys", "0", replace=False, vault=vault))

    def unlearn() -> None:
        read = Artefact.load(place, "keys", "0", vault=vault)
        _ = dict(read.people[people[0]])
        read.people.destroy(people[0])  # type: ignore[attr-defined]

    step("unlearn (one key)", unlearn)

    def predictions(seed: int) -> dict[str, Predictions]:
        rng, predicted = torch.Generator().manual_seed(seed), {}
        for name in PREDICTED:
            labels = sets[name].labels
            logits = torch.randn(labels.shape, generator=rng) + 2 * labels - 1
            views = (logits + 0.1,)
            rows = losses(logits, labels, faces.task.kind)
            predicted[name] = Predictions(logits, labels, rows, sets[name].identities, torch.randn(len(labels), 4, generator=rng), views)
        return predicted

    model_of, original, oracle, reference = (predictions(seed) for seed in range(4))
    compared = Comparison(model_of, original=original, oracle=oracle, oracles=[reference], references=[reference])
    step("evaluate (metrics)", lambda: measure_predictions(compared, faces.task.kind, Settings(resamples=RESAMPLES)))
    return found


def exponent(sizes: list[int], values: list[float], smallest: float) -> float | None:
    """Return the slope of log value by log size over the largest sizes; None if there is one size, or the values are too small to tell."""
    if len(values) == 1 or values[-1] < smallest or min(values[-FITTED:]) <= 0:
        return None
    x, y = ([math.log(value) for value in part[-FITTED:]] for part in (sizes, values))
    return statistics.linear_regression(x, y).slope


def run(axis: str, sizes: list[int], repeats: int, fixed_photos: int) -> list[str]:
    """Measure all sizes of an axis, print the table, and return the steps that grow too fast."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        photos, identities = (size, size // PER_IDENTITY) if axis == "photos" else (max(fixed_photos, 2 * size), size)
        rows = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(prefix="oneshui-bench-") as scratch:
                words = [sys.executable, __file__, "--one", str(photos), str(identities), scratch]
                own = os.environ | {"HF_DATASETS_CACHE": f"{scratch}/cache", "ONESHUI_CACHE": f"{scratch}/oneshui"}
                done = subprocess.run(words, capture_output=True, text=True, env=own)
                if done.returncode:
                    raise SystemExit(f"{photos} photos of {identities} identities failed:\n{done.stderr[-2000:]}")
                rows.append(json.loads(done.stdout.splitlines()[-1]))
        for name in rows[0]:
            lowest = min(row[name][0] for row in rows), min(row[name][1] for row in rows)
            columns.setdefault(name, []).append(lowest)
    print(f"{axis:24} | {' | '.join(f'{size:>9,} s' for size in sizes)} | exponent | MB at {sizes[-1]:,} | exponent of MB", flush=True)
    too_fast = []
    for name, values in columns.items():
        seconds, mb = [value for value, _ in values], [value for _, value in values]
        slopes = exponent(sizes, seconds, MIN_SECONDS), exponent(sizes, mb, MIN_MB)
        words = ["-" if slope is None else f"{slope:.2f}" for slope in slopes]
        print(
            f"{name:24} | {' | '.join(f'{value:11.2f}' for value in seconds)} | {words[0]:>8} | {mb[-1]:6.0f} | {words[1]:>4}", flush=True
        )
        too_fast += [f"{name} ({axis})"] if any(slope is not None and slope > LARGEST for slope in slopes) else []
    return too_fast


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--photos", nargs="*", type=int, default=list(PHOTOS))
    parser.add_argument("--identities", nargs="*", type=int, default=list(IDENTITIES))
    parser.add_argument("--fixed-photos", type=int, default=FIXED_PHOTOS, help="Photos where the number of identities grows.")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    if given.one:
        found = measure(int(given.one[0]), int(given.one[1]), Path(given.one[2]))
        print("\n" + json.dumps(found))
        return
    too_fast = []
    for axis, sizes in (("photos", given.photos), ("identities", given.identities)):
        if sizes:
            too_fast += run(axis, sizes, given.repeats, given.fixed_photos)
    if too_fast:
        raise SystemExit(f"Grows faster than n^{LARGEST}: {', '.join(too_fast)}.")


if __name__ == "__main__":
    main()
