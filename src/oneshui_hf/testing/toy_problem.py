"""A toy problem for checking methods: fourteen identities, and a tiny ViT that has memorised its training identities.

A photo is its identity's colours plus noise, and labels belong to the identity. Labels of an unseen identity cannot be predicted, so the
model predicts those of a training identity from memory alone, and forgetting is visible.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ..data.face_set import FaceSet
from ..data.preprocess import Preprocess
from ..data.schema import Task, TaskKind
from ..methods.base import Context
from ..methods.requests import Request
from ..models.closed_form import ClosedFormClassifier, add_closed_form_head
from ..models.grid_features import set_head, sum_photos
from ..models.outputs import losses
from ..models.sharded import ShardedClassifier, combine_shards, shard_of, shard_weights, wrap_backbone
from ..processes import single_thread
from ..seeding import generator, seeded
from ..stages.distributed import make_accelerator

IMAGE_SIZE, PHOTOS_PER_IDENTITY = 16, 6
IDENTITIES = {"retain": 6, "forget": 2, "val": 3, "test": 3}  # per set
SEED = 0
SHARDS, RANK = 3, 8


@dataclass(frozen=True)
class TrainingSchedule:
    """How the model is trained: number of steps, learning rate with cosine decay, and batch size."""

    steps: int
    lr: float
    batch_size: int


# Classes are learned in sudden steps, at which rounding errors decide. A low rate and batches of all photos give the same model on every
# machine.
SCHEDULES: dict[TaskKind, TrainingSchedule] = {
    "multi_label": TrainingSchedule(80, 5e-3, 16),
    "single_label": TrainingSchedule(120, 2e-3, 64),
}


@dataclass(frozen=True)
class ToyProblem:
    """Model, task, sets (train, retain, forget, val, test, support, reserved), and a request of the forget identities."""

    model: torch.nn.Module
    task: Task
    sets: dict[str, FaceSet]

    @property
    def request(self) -> Request:
        """The support images, with identities and labels."""
        support = self.sets["support"]
        pixels, labels = support.batch(torch.arange(len(support)))
        return Request(pixels, tuple(support.people[i] for i in support.identities.tolist()), labels, labels_given=True)

    def context(self, seed: int = SEED) -> Context:
        """Return a new context."""
        return Context(self.task, seed, make_accelerator(), request_size=IDENTITIES["forget"], retrain=self.retrain)

    def retrain(self, left_out: Collection[int], seed: int) -> torch.nn.Module:
        """Return a model that was trained without some training identities."""
        return copy.deepcopy(_retrained(self.task.kind, _head_kind(self.model), tuple(sorted(left_out)), seed))

    def loss(self, model: torch.nn.Module, name: str) -> float:
        """Return the mean loss of a model on a set, in nats."""
        faces = self.sets[name]
        pixels, labels = faces.batch(torch.arange(len(faces)))
        with torch.no_grad():
            return float(losses(model(pixel_values=pixels).logits, labels, self.task.kind).mean())


@cache
def toy_problem(kind: TaskKind, sharded: bool = False, closed_form: bool = False) -> ToyProblem:
    """Return the toy problem of a task, its model trained as a whole, in shards or with a head in closed form. Made once per process."""
    task = Task(kind, ("a", "b", "c", "d"))
    sets = _sets(task)
    return ToyProblem(_trained_model(task, sets["train"], sharded, closed_form, SEED), task, sets)


@cache
def _retrained(kind: TaskKind, trained: tuple[bool, bool], left_out: tuple[int, ...], seed: int) -> torch.nn.Module:
    problem = toy_problem(kind, *trained)
    train = problem.sets["train"]
    return _trained_model(problem.task, train.subset(train.positions_without(left_out)), *trained, seed)


def _head_kind(model: torch.nn.Module) -> tuple[bool, bool]:
    """Return whether a model is sharded, and whether its head is in closed form."""
    return isinstance(model, ShardedClassifier), isinstance(model, ClosedFormClassifier)


def _trained_model(task: Task, train: FaceSet, sharded: bool, closed_form: bool, seed: int) -> torch.nn.Module:
    """Return a model that was trained on a set, in evaluation mode; the seed sets the order of the photos."""
    model = _model(task)
    with single_thread():  # training amplifies rounding differences, and every process must get the same model
        if closed_form:
            model = add_closed_form_head(model, IMAGE_SIZE, mirrored=True)
            accelerator = make_accelerator()
            set_head(model, sum_photos(model, train, task, accelerator), accelerator)
        elif sharded:
            model = _train_in_shards(model, train, task, seed)
        else:
            _train(model, train, task, seed)
    return model.eval()


def _sets(task: Task) -> dict[str, FaceSet]:
    random = np.random.default_rng(SEED)
    count = sum(IDENTITIES.values())
    identity = np.repeat(np.arange(count), PHOTOS_PER_IDENTITY)
    colours = random.uniform(40, 215, (count, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)  # 4 x 4 colour patches per identity
    noise = random.normal(0, 12, (len(identity), 3, IMAGE_SIZE, IMAGE_SIZE))
    store = np.clip(colours[identity] + noise, 0, 255).astype(np.uint8)
    if task.kind == "multi_label":
        labels_of_identity: Any = random.integers(0, 2, (count, len(task.label_names))).astype(np.float32)
    else:
        labels_of_identity = np.arange(count) % len(task.label_names)
    labels = torch.from_numpy(labels_of_identity[identity])
    names = tuple(f"person {number}" for number in range(count))
    is_reserved = np.arange(len(identity)) % PHOTOS_PER_IDENTITY == 0  # the first photo of each identity is kept out of training
    set_number = np.searchsorted(np.cumsum(list(IDENTITIES.values())), identity, side="right")

    def take(rows: np.ndarray, reserved: FaceSet | None = None) -> FaceSet:
        positions = np.flatnonzero(rows)
        return FaceSet(store, positions, labels[positions], torch.from_numpy(identity[positions]), Preprocess(IMAGE_SIZE), names, reserved)

    sets = {name: take((set_number == number) & ~is_reserved) for number, name in enumerate(IDENTITIES)}
    sets |= {"support": take((set_number == 1) & is_reserved), "reserved": take((set_number == 0) & is_reserved)}
    return sets | {"train": take((set_number <= 1) & ~is_reserved, sets["reserved"])}


def _model(task: Task) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=len(task.label_names),
        problem_type=task.problem_type,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with seeded(SEED, "model"):
        return ViTForImageClassification(config)


def _train_in_shards(backbone: Any, train: FaceSet, task: Task, seed: int) -> ShardedClassifier:
    """Return a sharded model over an untrained backbone, each shard trained on its own identities."""
    model = wrap_backbone(backbone, IMAGE_SIZE, SHARDS, RANK, SEED)
    shard_of_photo = torch.tensor([shard_of(train.people[person], SEED, SHARDS) for person in train.identities.tolist()])
    parts = {}
    for shard in sorted(set(shard_of_photo.tolist())):
        model.initialize_shard(shard)
        _train(model, train.subset((shard_of_photo == shard).nonzero().squeeze(1)), task, seed)
        parts[shard] = shard_weights(model, shard)
    return combine_shards(model, parts)


def _train(model: torch.nn.Module, train: FaceSet, task: Task, seed: int) -> None:
    pixels, labels = train.batch(torch.arange(len(train)))
    schedule = SCHEDULES[task.kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr)
    model.train()
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.lr * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
        batch = torch.randperm(len(train), generator=generator(seed, "order", step))[: schedule.batch_size]
        loss = losses(model(pixel_values=pixels[batch]).logits, labels[batch], task.kind).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
