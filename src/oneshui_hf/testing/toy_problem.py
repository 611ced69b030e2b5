"""A world small enough to check a method in: fourteen people, a tiny ViT that knows its training people by heart.

Each photo is its person's colours under noise, and the labels belong to the person: nothing can be told of a stranger, so what the model
knows of a training person it knows by memory, and forgetting shows.
"""

from __future__ import annotations

import math
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
from ..models.outputs import losses
from ..models.sharded import ShardedClassifier, assemble, over, part_of, shard_of
from ..seeding import generator, seeded
from ..stages.distributed import make_accelerator

SIDE, PHOTOS = 16, 6
PEOPLE = {"retain": 6, "forget": 2, "val": 3, "test": 3}
SEED = 0
SHARDS, RANK = 3, 8


@dataclass(frozen=True)
class Course:
    """How a model learns its people by heart: how many steps, the learning rate, and the photos of a step."""

    steps: int
    rate: float
    batch: int


# The second one gently, from all photos at once: classes are learned in leaps, and each machine's rounding would leap elsewhere.
COURSES: dict[TaskKind, Course] = {"multi_label": Course(80, 5e-3, 16), "single_label": Course(120, 2e-3, 64)}


@dataclass(frozen=True)
class World:
    """Model, task and sets (train, retain, forget, val, test, support, reserved), and the request of the people to forget."""

    model: torch.nn.Module
    task: Task
    sets: dict[str, FaceSet]

    @property
    def request(self) -> Request:
        """The support photos, with identities and labels."""
        support = self.sets["support"]
        pixels, labels = support.batch(torch.arange(len(support)))
        return Request(pixels, tuple(support.people[i] for i in support.identities.tolist()), labels, labels_given=True)

    def context(self, seed: int = SEED) -> Context:
        """Return a fresh context."""
        return Context(self.task, seed, make_accelerator(), request_size=PEOPLE["forget"])

    def loss(self, model: torch.nn.Module, name: str) -> float:
        """Return the mean loss of a model on a set."""
        faces = self.sets[name]
        pixels, labels = faces.batch(torch.arange(len(faces)))
        with torch.inference_mode():
            return float(losses(model(pixel_values=pixels).logits, labels, self.task.kind).mean())


@cache
def world(kind: TaskKind, sharded: bool = False) -> World:
    """Return the world of a task, its model trained, as a whole or in shards; made once a process."""
    task = Task(kind, ("a", "b", "c", "d"))
    sets, model = _sets(task), _model(task)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: rounding grows while a model learns, and everybody is to meet the same one
    try:
        if sharded:
            model = _in_shards(model, sets["train"], task)
        else:
            _learn(model, sets["train"], task)
    finally:
        torch.set_num_threads(threads)
    return World(model.eval(), task, sets)


def _sets(task: Task) -> dict[str, FaceSet]:
    draws = np.random.default_rng(SEED)
    whole = sum(PEOPLE.values())
    owner = np.repeat(np.arange(whole), PHOTOS)
    colours = draws.uniform(40, 215, (whole, 3, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)  # 4 x 4 fields of colour a person
    store = np.clip(colours[owner] + draws.normal(0, 12, (len(owner), 3, SIDE, SIDE)), 0, 255).astype(np.uint8)
    if task.kind == "multi_label":
        traits: Any = draws.integers(0, 2, (whole, len(task.label_names))).astype(np.float32)
    else:
        traits = np.arange(whole) % len(task.label_names)
    labels = torch.from_numpy(traits[owner])
    names = tuple(f"person {number}" for number in range(whole))
    first = np.arange(len(owner)) % PHOTOS == 0  # of everybody, one photo that nobody trains on
    ends = np.cumsum(list(PEOPLE.values()))
    place = np.searchsorted(ends, owner, side="right")

    def take(rows: np.ndarray, reserved: FaceSet | None = None) -> FaceSet:
        positions = np.flatnonzero(rows)
        people = torch.from_numpy(owner[positions])
        return FaceSet(store, positions, labels[positions], people, Preprocess(SIDE), names, reserved)

    sets = {name: take((place == number) & ~first) for number, name in enumerate(PEOPLE)}
    sets |= {"support": take((place == 1) & first), "reserved": take((place == 0) & first)}
    return sets | {"train": take((place <= 1) & ~first, sets["reserved"])}


def _model(task: Task) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=SIDE,
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


def _in_shards(backbone: Any, train: FaceSet, task: Task) -> ShardedClassifier:
    """Return a model of shards over a backbone that knows nobody, each trained on its own people."""
    model = over(backbone, SIDE, SHARDS, RANK, SEED)
    owners = torch.tensor([shard_of(train.people[person], SEED, SHARDS) for person in train.identities.tolist()])
    parts = {}
    for shard in sorted(set(owners.tolist())):
        model.begin(shard)
        _learn(model, train.subset((owners == shard).nonzero().squeeze(1)), task)
        parts[shard] = part_of(model, shard)
    return assemble(model, parts)


def _learn(model: torch.nn.Module, train: FaceSet, task: Task) -> None:
    pixels, labels = train.batch(torch.arange(len(train)))
    course = COURSES[task.kind]
    optimizer = torch.optim.AdamW(model.parameters(), lr=course.rate)
    model.train()
    for step in range(course.steps):
        optimizer.param_groups[0]["lr"] = course.rate * 0.5 * (1 + math.cos(math.pi * step / course.steps))
        mine = torch.randperm(len(train), generator=generator(SEED, "order", step))[: course.batch]
        loss = losses(model(pixel_values=pixels[mine]).logits, labels[mine], task.kind).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
