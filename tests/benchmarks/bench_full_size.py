"""Time and memory of reading, indexing and splitting annotations of CelebA's full size, and of simulated requests.

    python tests/benchmarks/bench_full_size.py [FOLDER]

FOLDER contains CelebA's annotation files. Without it and without ONESHUI_TEST_ASSETS, files of this size are generated. Photos are empty
files. Everything is measured in a separate process, first without and then with cached Arrow data; imports are reported separately.
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
        folder = write_folder(Path(scratch) / "celeba")
        environment = os.environ | {"HF_DATASETS_CACHE": f"{scratch}/cache"}
        for title in ("nothing cached", "Arrow data cached"):
            print(f"{title}:")
            subprocess.run([sys.executable, __file__, "--measure", str(folder)], check=True, env=environment)


def write_folder(folder: Path) -> Path:
    """Write a folder in CelebA's layout, with empty photos."""
    (folder / "img_align_celeba").mkdir(parents=True)
    for number in range(1, PHOTOS + 1):
        (folder / "img_align_celeba" / f"{number:06d}.jpg").touch()
    assets = os.environ.get("ONESHUI_TEST_ASSETS")
    annotations = sys.argv[1] if len(sys.argv) > 1 else assets and f"{assets}/annotations/celeba"
    if annotations:
        for name in ("list_attr_celeba.txt", "identity_CelebA.txt"):
            (folder / name).symlink_to(Path(annotations).resolve() / name)
        return folder
    write_annotations(folder, PHOTOS, PEOPLE)
    return folder


def write_annotations(folder: Path, photos: int, people: int) -> None:
    """Write annotation files in CelebA's layout, of random attributes, with about as many photos of each person."""
    import numpy as np

    from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES

    draws = np.random.default_rng(0)
    values = np.where(draws.random((photos, len(ATTRIBUTE_NAMES))) < 0.3, " 1", "-1")
    identities = draws.integers(0, people, photos)
    header = [str(photos), " ".join(ATTRIBUTE_NAMES)]
    rows = [f"{number:06d}.jpg {' '.join(row)}" for number, row in enumerate(values, 1)]
    (folder / "list_attr_celeba.txt").write_text("\r\n".join([*header, *rows]) + "\r\n")
    (folder / "identity_CelebA.txt").write_text("".join(f"{n:06d}.jpg {person}\r\n" for n, person in enumerate(identities, 1)))


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform != "darwin" else 1e6)


def measure(folder: Path) -> None:
    begin = time.perf_counter()
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
    split = make_split(faces.photos_by_identity(), seed=0, forget=5)
    train = face_sets(faces, None, split, Preprocess(56))["train"]  # type: ignore[arg-type]
    assert train.reserved is not None
    _ = train.positions_of, train.reserved.positions_of  # the index of photos by identity
    ready, memory = time.perf_counter(), megabytes()
    next(simulate(train, (5, 5), generator(0, "warm-up"), unseen=True))
    memory, times, requests = megabytes(), [], simulate(train, (5, 5), generator(0, "bench"), unseen=True)
    for _ in range(200):
        started = time.perf_counter()
        next(requests)
        times.append(1000 * (time.perf_counter() - started))
    print(f"  {len(faces):,} photos of {len(faces.people):,} people read, indexed and split in {ready - imported:.1f} s")
    print(f"  peak memory {memory:.0f} MB, of which {imports:.0f} MB are the libraries, imported in {imported - begin:.1f} s")
    first, median, slowest = times[0], statistics.median(times), max(times[1:])
    print(f"  a simulated request: median {median:.2f} ms, slowest {slowest:.2f} ms, the first of an epoch {first:.2f} ms")
    print(f"  memory added by 200 of them: {megabytes() - memory:.1f} MB")


if __name__ == "__main__":
    main()
