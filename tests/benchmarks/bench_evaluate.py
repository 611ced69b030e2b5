"""What evaluation costs beside the forward passes that it cannot do without, and how long RMIA takes after them.

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
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.evaluate import evaluate
from oneshui_hf.stages.evaluation.predictions import ASKED, SETS
from oneshui_hf.stages.run_data import open_data

SIDE, BATCH = 224, 64
FORGET, TEST, POPULATION, QUERIES, ATTRIBUTES = 400, 1200, 3000, 8, 40


def run_of(path: Path, kind: Kind, seed: int) -> Run:
    """A ViT-Ti/16 as it is drawn, as a run on generated people."""
    faces = load_faces("synthetic")
    options = TrainOptions(dataset="synthetic", model="drawn", image_size=SIDE, forget=4)
    torch.manual_seed(seed)
    shape = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(image_size=SIDE, num_labels=len(faces.task.label_names), problem_type=faces.task.problem_type, **shape)
    path.mkdir()
    save_model(ViTForImageClassification(config), Preprocess(SIDE), path)
    make_split(faces.photos(), 0, options.forget).save(path / SPLIT)
    record = Record(kind=kind, seed=seed, options=dataclasses.asdict(options), dataset=faces.describe(), weights=hash_weights(path))
    write_record(path, record)
    load_pixels(faces, SIDE)  # decoding is no part of either
    return Run.open(path)


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds: what else runs on the machine does not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


def evaluation(folder: Path) -> None:
    """Two models, all sets, the mirrored views, 1,000 resamples, against the forward passes alone."""
    original, oracle = run_of(folder / "original", "original", 0), run_of(folder / "oracle", "oracle", 1)
    accelerator = make_accelerator()
    options = EvaluateOptions(oracle=str(oracle.path), batch_size=BATCH)
    sets = open_data(original, accelerator).sets
    passes = [(name, view) for name in SETS for view in range(options.queries if name in ASKED else 1)]
    photos = 2 * sum(len(sets[name]) for name, _ in passes)

    def bare() -> None:
        for run in (original, oracle):
            model = load_model(run.path)[0]
            for name, view in passes:
                predict(model, sets[name], accelerator, BATCH, view)

    predict(load_model(original.path)[0], sets["support"], accelerator, BATCH)  # the first pass of a process is slower
    forward = seconds(bare)
    whole = seconds(lambda: evaluate(original, options, accelerator))
    again = seconds(lambda: evaluate(original, dataclasses.replace(options, resamples=999), accelerator))
    print(f"evaluation of {photos} photos, ViT-Ti/16: forward passes {forward:.1f} s, evaluate {whole:.1f} s: {whole / forward:.3f} times")
    print(f"metrics alone, from the stored predictions: {again:.2f} s")


def attack() -> None:
    """RMIA at the size of a request of some ten people, after the forward passes."""
    draws = torch.Generator().manual_seed(0)

    def signals(photos: int, queries: int) -> Signals:
        target, reference = (-torch.rand(queries, photos, ATTRIBUTES, dtype=torch.float64, generator=draws) for _ in range(2))
        return Signals(target, reference.unsqueeze(0))

    members, nonmembers, population = signals(FORGET, QUERIES), signals(TEST, QUERIES), signals(POPULATION, 1)
    people = (torch.arange(FORGET) // 20, torch.arange(TEST) // 20)
    taken = seconds(lambda: rmia(members, nonmembers, population, people, torch.Generator().manual_seed(1)))
    print(f"RMIA of {FORGET} forget, {TEST} test, {POPULATION} z, {QUERIES} queries: {taken:.2f} s")


if __name__ == "__main__":
    attack()
    with tempfile.TemporaryDirectory() as scratch:
        evaluation(Path(scratch))
