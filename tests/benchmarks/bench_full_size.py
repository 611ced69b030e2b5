"""Reading, indexing and splitting annotations of CelebA's full size, and simulating a request: seconds and memory.

    python tests/benchmarks/bench_full_size.py [FOLDER]

FOLDER holds CelebA's annotation files; without it, and without ONESHUI_TEST_ASSETS, a file of the same size is generated. Photos are empty
stand-ins. Everything is measured in a process of its own that has nothing cached; what importing the libraries takes is told apart.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PHOTOS, PEOPLE = 202_599, 10_177


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--measure":
        measure(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(prefix="oneshui-bench-") as scratch:
        folder = stand_in(Path(scratch) / "celeba")
        environment = os.environ | {"HF_DATASETS_CACHE": f"{scratch}/cache"}
        for title in ("nothing cached", "Arrow data cached"):
            print(f"{title}:")
            subprocess.run([sys.executable, __file__, "--measure", str(folder)], check=True, env=environment)


def stand_in(folder: Path) -> Path:
    """Make a folder in CelebA's layout, photos empty."""
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in range(1, PHOTOS + 1):
        (folder / "img_align_celeba" / f"{number:06d}.jpg").touch()
    assets = os.environ.get("ONESHUI_TEST_ASSETS")
    given = sys.argv[1] if len(sys.argv) > 1 else assets and f"{assets}/annotations/celeba"
    if given:
        for name in ("list_attr_celeba.txt", "identity_CelebA.txt"):
            (folder / name).symlink_to(Path(given).resolve() / name)
        return folder
    import numpy as np

    from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES

    draws = np.random.default_rng(0)
    values = np.where(draws.random((PHOTOS, len(ATTRIBUTE_NAMES))) < 0.3, " 1", "-1")
    people = draws.integers(0, PEOPLE, PHOTOS)
    header = [str(PHOTOS), " ".join(ATTRIBUTE_NAMES)]
    rows = [f"{number:06d}.jpg {' '.join(row)}" for number, row in enumerate(values, 1)]
    (folder / "list_attr_celeba.txt").write_text("\r\n".join([*header, *rows]) + "\r\n")
    (folder / "identity_CelebA.txt").write_text("".join(f"{n:06d}.jpg {person}\r\n" for n, person in enumerate(people, 1)))
    return folder


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


def measure(folder: Path) -> None:
    started = time.perf_counter()
    import datasets  # noqa: F401
    import torch  # noqa: F401

    from oneshui_hf.data.face_set import face_sets
    from oneshui_hf.data.load import load_faces
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.data.split import make_split
    from oneshui_hf.methods.simulation import simulate
    from oneshui_hf.seeding import generator

    imported, imports = time.perf_counter(), megabytes()
    faces = load_faces("celeba", folder)
    split = make_split(faces.photos(), seed=0, forget=5)
    train = face_sets(faces, None, split, Preprocess(56))["train"]  # type: ignore[arg-type]
    assert train.reserved is not None
    _ = train.positions_of, train.reserved.positions_of  # the index of photos by person
    ready, memory = time.perf_counter(), megabytes()
    next(simulate(train, (5, 5), generator(0, "warm-up"), unseen=True))
    memory, took, requests = megabytes(), [], simulate(train, (5, 5), generator(0, "bench"), unseen=True)
    for _ in range(200):
        began = time.perf_counter()
        next(requests)
        took.append(1000 * (time.perf_counter() - began))
    print(f"  {len(faces):,} photos of {len(faces.people):,} people read, indexed and split in {ready - imported:.1f} s")
    print(f"  peak memory {memory:.0f} MB, of which {imports:.0f} MB are the libraries, imported in {imported - started:.1f} s")
    first, median, slowest = took[0], statistics.median(took), max(took[1:])
    print(f"  a simulated request: median {median:.2f} ms, slowest {slowest:.2f} ms, the first of an epoch {first:.2f} ms")
    print(f"  memory that 200 of them added: {megabytes() - memory:.1f} MB")


if __name__ == "__main__":
    main()
