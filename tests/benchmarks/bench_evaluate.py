"""Processor time of an evaluation compared with its forward passes alone, and of RMIA after them.

python tests/benchmarks/bench_evaluate.py
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification

from oneshui_hf.data.load import load_faces
from oneshui_hf.data.pixels import load_pixels
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.split import make_split
from oneshui_hf.metrics.attack_signals import Signals
from oneshui_hf.metrics.attacks import rmia
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.outputs import predict
from oneshui_hf.runs import SPLIT, Kind, Record, Run, hash_weights, write_record
from oneshui_hf.sets import ATTACKED, PREDICTED
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.evaluate import evaluate
from oneshui_hf.stages.run_data import open_data

SIDE, BATCH = 224, 64
FORGET, TEST, POPULATION, QUERIES, ATTRIBUTES = 400, 1200, 3000, 8, 40


def make_run(path: Path, kind: Kind, seed: int) -> Run:
    """A randomly initialised ViT-Ti/16, as a run on generated people."""
    faces = load_faces("synthetic")
    options = TrainOptions(dataset="synthetic", model="drawn", image_size=SIDE, forget=4)
    torch.manual_seed(seed)
    shape = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(image_size=SIDE, num_labels=len(faces.task.label_names), problem_type=faces.task.problem_type, **shape)
    path.mkdir()
    save_model(ViTForImageClassification(config), Preprocess(SIDE), path)
    make_split(faces.photos_by_identity(), 0, options.forget).save(path / SPLIT)
    record = Record(kind=kind, seed=seed, options=dataclasses.asdict(options), dataset=faces.describe(), weights=hash_weights(path))
    write_record(path, record)
    load_pixels(faces, SIDE)  # decode before timing
    return Run.open(path)


def seconds(run: Callable[[], object]) -> float:
    """Processor seconds, which other processes of the machine do not affect."""
    started = time.process_time()
    run()
    return time.process_time() - started


def time_evaluation(folder: Path) -> None:
    """Two models, all sets, the mirrored views and 1,000 resamples, compared with the forward passes alone."""
    original, oracle = make_run(folder / "original", "original", 0), make_run(folder / "oracle", "oracle", 1)
    accelerator = make_accelerator()
    options = EvaluateOptions(oracle=str(oracle.path), batch_size=BATCH)
    sets = open_data(original, accelerator).sets
    passes = [(name, view) for name in PREDICTED for view in range(options.queries if name in ATTACKED else 1)]
    photos = 2 * sum(len(sets[name]) for name, _ in passes)

    def forward_passes() -> None:
        for run in (original, oracle):
            model = load_model(run.path)[0]
            for name, view in passes:
                predict(model, sets[name], accelerator, BATCH, view)

    predict(load_model(original.path)[0], sets["support"], accelerator, BATCH)  # warm up: the first pass of a process is slower
    forward = seconds(forward_passes)
    total = seconds(lambda: evaluate(original, options, accelerator))
    again = seconds(lambda: evaluate(original, dataclasses.replace(options, resamples=999), accelerator))
    print(f"evaluation of {photos} photos, ViT-Ti/16: forward passes {forward:.1f} s, evaluate {total:.1f} s: {total / forward:.3f} times")
    print(f"metrics alone, from the stored predictions: {again:.2f} s")


def time_rmia() -> None:
    """RMIA for a request of about ten people, after the forward passes."""
    rng = torch.Generator().manual_seed(0)

    def signals(photos: int, queries: int) -> Signals:
        target, reference = (-torch.rand(queries, photos, ATTRIBUTES, dtype=torch.float64, generator=rng) for _ in range(2))
        return Signals(target, reference.unsqueeze(0))

    members, nonmembers, population = signals(FORGET, QUERIES), signals(TEST, QUERIES), signals(POPULATION, 1)
    identities = (torch.arange(FORGET) // 20, torch.arange(TEST) // 20)
    taken = seconds(lambda: rmia(members, nonmembers, population, identities, torch.Generator().manual_seed(1)))
    print(f"RMIA of {FORGET} forget, {TEST} test, {POPULATION} z, {QUERIES} queries: {taken:.2f} s")


if __name__ == "__main__":
    time_rmia()
    with tempfile.TemporaryDirectory() as scratch:
        time_evaluation(Path(scratch))
