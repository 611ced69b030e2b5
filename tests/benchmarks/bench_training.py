"""Training throughput of the loop against transformers' `Trainer`: the same model, photos, batch, optimizer and number of steps.

    python tests/benchmarks/bench_training.py [--threads N]

The `Trainer` reads the photos in two ways: decoded JPEGs through a `datasets` transform, as in the image classification guide of
transformers, and tensors that are already in memory, which measures the loops alone. Ours reads the pixel cache and augments. Rounds of
the three alternate, and the medians are compared, so that the machine cancels.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE, BATCH, STEPS, ROUNDS = 56, 32, 12, 5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oneshui-bench-") as scratch:
        os.environ.setdefault("HF_DATASETS_CACHE", f"{scratch}/cache")
        bench(Path(scratch), arguments.threads)


def bench(scratch: Path, threads: int) -> None:
    import torch
    from bench_loading import _generate
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    from oneshui_hf.data.augment import apply_augmentation, draw_augmentation
    from oneshui_hf.data.face_set import FaceSet
    from oneshui_hf.data.images import decode, to_pixels
    from oneshui_hf.data.load import load_faces
    from oneshui_hf.data.pixels import load_pixels
    from oneshui_hf.data.preprocess import Preprocess
    from oneshui_hf.models.new import TINY, new_model
    from oneshui_hf.models.outputs import losses
    from oneshui_hf.reporting import SILENT
    from oneshui_hf.seeding import generator
    from oneshui_hf.stages.command_options import TrainOptions
    from oneshui_hf.stages.distributed import make_accelerator
    from oneshui_hf.stages.training.loop import fit

    if threads:
        torch.set_num_threads(threads)
    preprocess, count = Preprocess(SIDE), STEPS * BATCH
    faces, pixels = load_pixels(load_faces("celeba", _generate(scratch / "celeba", count)), SIDE)
    labels = faces.labels.float()
    identities = torch.from_numpy(faces.identities)
    train = FaceSet(pixels, faces.arrow_rows, labels, identities, preprocess, tuple(faces.people))
    val = train.subset(torch.arange(0))
    accelerator = make_accelerator()

    class Decoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Photos that are decoded and augmented on access."""

        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            raw = torch.from_numpy(to_pixels(decode(faces.encoded_image(int(faces.arrow_rows[index]))), SIDE))
            photo = preprocess(apply_augmentation(raw[None], draw_augmentation(1, "crop", generator(0, index))))[0]
            return {"pixel_values": photo, "labels": labels[index]}

    class InMemory(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """Photos as tensors."""

        photos = preprocess(train.raw_pixels(torch.arange(count)))

        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"pixel_values": self.photos[index], "labels": labels[index]}

    class MultiLabelTrainer(Trainer):  # type: ignore[misc]
        """The `Trainer` with our loss."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            output = model(pixel_values=inputs["pixel_values"])
            loss = losses(output.logits, inputs["labels"], "multi_label").mean()
            return (loss, output) if return_outputs else loss

    def small() -> torch.nn.Module:
        blocks = {"num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 14, "image_size": SIDE}
        return ViTForImageClassification(ViTConfig(hidden_size=384, num_labels=40, **blocks))

    def ours(model: torch.nn.Module, folder: Path) -> None:
        options = TrainOptions(dataset="celeba", epochs=1, batch_size=BATCH, keep="last", warmup_epochs=0, augment="crop")
        fit(model, train, val, faces.task, options, 0, folder, accelerator, SILENT, validate="last")

    def theirs(model: torch.nn.Module, folder: Path, photos: Any) -> None:
        settings = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            optim="sgd",
            optim_args="momentum=0.9",
            learning_rate=1e-3,
            weight_decay=1e-4,
            lr_scheduler_type="cosine",
            save_strategy="epoch",  # a checkpoint after the epoch, as ours
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
        )
        MultiLabelTrainer(model=model, args=settings, train_dataset=photos).train()

    def seconds(run: Any, *arguments: Any) -> float:
        with tempfile.TemporaryDirectory(dir=scratch) as folder, open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):  # noqa: PTH123
            started = time.perf_counter()
            run(arguments[0], Path(folder), *arguments[1:])
            return time.perf_counter() - started

    models = (("tiny", lambda: new_model(TINY, faces.task, SIDE, 0)[0]), ("ViT-S/14, 4 blocks", small))
    for name, make in models:
        rounds = [
            (seconds(ours, make()), seconds(theirs, make(), Decoded()), seconds(theirs, make(), InMemory())) for _ in range(ROUNDS + 1)
        ][1:]  # the first one starts threads and fills caches
        own, decoded, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name}: {count / own:.0f} photos/s")
        print(f"  {decoded / own:.2f} times Trainer with JPEGs, {memory / own:.2f} times Trainer with tensors in memory")


if __name__ == "__main__":
    main()
