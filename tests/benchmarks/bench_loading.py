"""Batches per second from the pixel cache, compared with decoding JPEGs in `DataLoader` workers and with training steps.

    python tests/benchmarks/bench_loading.py [FOLDER]

FOLDER is CelebA's folder on disk. Without it and without ONESHUI_TEST_ASSETS, photos of CelebA's size are generated. Both loaders apply
the same augmentation to the same photos at the same size. Training steps are measured for a ViT-S/14 of four blocks (7.2 M parameters),
about the smallest useful model on real faces, and for the toy model of `--model tiny`: with a batch that is there, and with batches that a
thread reads and augments while the step before is computed, as in the training.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SIDE, BATCH, STEPS, TRAINING_STEPS, ROUNDS = 56, 32, 60, 5, 9


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="oneshui-bench-") as scratch:
        os.environ.setdefault("HF_DATASETS_CACHE", f"{scratch}/cache")
        bench(_folder(Path(scratch)))


def _folder(scratch: Path) -> Path:
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    if assets := os.environ.get("ONESHUI_TEST_ASSETS"):
        return Path(assets) / "faces" / "celeba"
    return _generate(scratch / "celeba")


def _generate(folder: Path, count: int = 2000) -> Path:
    """Write smooth noise of CelebA's size, with annotations. Decoding it takes as long as decoding a portrait."""
    import numpy as np
    from PIL import Image

    from oneshui_hf.data.builders.celeba import ATTRIBUTE_NAMES

    (folder / "img_align_celeba").mkdir(parents=True)
    draws = np.random.default_rng(0)
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for name in names:
        small = Image.fromarray(draws.integers(0, 256, (28, 23, 3), dtype=np.uint8))
        small.resize((178, 218), Image.Resampling.BICUBIC).save(folder / "img_align_celeba" / name, quality=90)
    rows = [f"{name} " + " ".join(str(2 * bit - 1) for bit in draws.integers(0, 2, 40)) for name in names]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(ATTRIBUTE_NAMES), *rows]) + "\n")
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {number // 10}\n" for number, name in enumerate(names)))
    return folder


def bench(folder: Path) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from oneshui_hf.data.augment import apply_augmentation, draw_augmentation
    from oneshui_hf.data.images import decode, to_pixels
    from oneshui_hf.data.load import load_faces
    from oneshui_hf.data.memmap_cache import WORKERS
    from oneshui_hf.data.pixels import load_pixels
    from oneshui_hf.data.prefetch import prefetch
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.models.new import TINY, new_model
    from oneshui_hf.models.outputs import losses
    from oneshui_hf.seeding import generator

    preprocess = Preprocess(SIDE)
    started = time.perf_counter()
    faces, pixels = load_pixels(load_faces("celeba", folder), SIDE)
    built = time.perf_counter() - started
    order = torch.randint(len(faces), (STEPS * BATCH,), generator=generator(0, "order"))

    class Photos(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Photos that are decoded on access."""

        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, index: int) -> torch.Tensor:
            raw = torch.from_numpy(to_pixels(decode(faces.encoded_image(int(faces.arrow_rows[order[index]]))), SIDE))
            return preprocess(apply_augmentation(raw[None], draw_augmentation(1, "crop", generator(0, index))))[0]

    def trainer(model: torch.nn.Module) -> Callable[[Iterable[torch.Tensor]], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def train(photos: Iterable[torch.Tensor]) -> None:
            for batch in photos:
                loss = losses(model(pixel_values=batch).logits, faces.labels[:BATCH], "multi_label").mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return train

    def from_cache(steps: int = STEPS) -> Iterator[torch.Tensor]:
        draws = generator(0, "augment")
        for step in range(steps):
            rows = faces.arrow_rows[order[step * BATCH : (step + 1) * BATCH].numpy()]
            yield preprocess(apply_augmentation(torch.from_numpy(pixels[rows]), draw_augmentation(BATCH, "crop", draws)))

    loader = torch.utils.data.DataLoader(Photos(), BATCH, num_workers=WORKERS, persistent_workers=True)
    batch = next(from_cache())
    four_blocks = ViTConfig(
        hidden_size=384, num_hidden_layers=4, num_attention_heads=6, intermediate_size=1536, patch_size=14, image_size=SIDE, num_labels=40
    )
    small, tiny = trainer(ViTForImageClassification(four_blocks)), trainer(new_model(TINY, faces.task, SIDE, 0)[0])

    def seconds_per_step(run: Callable[[], object], steps: int = STEPS) -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) / steps

    list(loader)  # starts the workers, and fills the file system's cache
    rounds = [
        (
            seconds_per_step(lambda: list(from_cache())),
            seconds_per_step(lambda: list(loader)),
            seconds_per_step(lambda: small([batch] * TRAINING_STEPS), TRAINING_STEPS),
            seconds_per_step(lambda: small(prefetch(from_cache(TRAINING_STEPS))), TRAINING_STEPS),
            seconds_per_step(lambda: tiny([batch] * STEPS)),
            seconds_per_step(lambda: tiny(prefetch(from_cache()))),
        )
        for _ in range(ROUNDS)
    ]
    columns = list(zip(*rounds, strict=True))
    cache, jpeg = (statistics.median(column) for column in columns[:2])
    print(f"{len(faces)} photos at {SIDE} pixels, batches of {BATCH}, random resized crop and flip; cache written in {built:.1f} s")
    print(f"from the cache      {1 / cache:8.1f} batches/s")
    print(f"JPEGs, {WORKERS} workers     {1 / jpeg:8.1f} batches/s   the cache is {jpeg / cache:.1f} times as fast")
    for name, steps, both in (("ViT-S/14", *columns[2:4]), ("tiny", *columns[4:])):
        step = statistics.median(steps)
        longer = statistics.median(second / first for first, second in zip(steps, both, strict=True))
        added = f"loading adds {100 * (longer - 1):.1f} % to a step, {100 * cache / step:.1f} % without the thread"
        print(f"training, {name:10}{1 / step:8.1f} batches/s   {added}")


if __name__ == "__main__":
    main()
