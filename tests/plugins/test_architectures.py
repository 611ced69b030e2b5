"""Every method on every architecture: a training step, prepare, unlearn, finite weights, and `pipeline()` loads the result."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.data.schema import Task
from oneshui_hf.errors import UsageError
from oneshui_hf.models.closed_form import add_closed_form_head
from oneshui_hf.models.grid_features import set_head, sum_photos
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.outputs import losses
from oneshui_hf.models.sharded import combine_shards, shard_weights, wrap_backbone
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.testing.subject import Subject
from oneshui_hf.testing.toy_problem import ToyProblem
from support import timm_stand_in
from support.architectures import ARCHITECTURES, SIDE, classifier
from support.faces import portrait

TASK = Task("multi_label", ("a", "b", "c"))
SETS = {"retain": 4, "forget": 2, "val": 3, "test": 2}  # people of each
PHOTOS = 3  # per person; the first is kept out of training
SHARDS = 3
FEW_STEPS = {
    "forget-keys": ["targets=quantile", "steps_per_identity=1", "chunk=7"],
    "metaunlearn": ["steps=1", "calibration=1", "unlearning_steps=2"],
    "ssd": ["selection=1", "dampening=0.1"],
    "lfssd": ["selection=1"],
    "l2ul": ["copies=1", "attack_steps=2", "steps=2"],
    "reference-guided": ["steps=2"],
    **{name: ["calibration=1"] for name in ("gradient-ascent", "random-labels")},
    **{name: ["epochs=1"] for name in ("fine-tuning", "bad-teacher", "neggrad-plus", "scrub", "salun")},
}
# What a method cannot do, with the sentence that says so. The table in docs/plugins.md lists the same.
REFUSED = {
    ("exact-head", "timm"): "--head closed-form needs the hidden states of TimmWrapperForImageClassification, which has none",
    ("drop-shard", "resnet"): "--sharded adapts linear layers, and the backbone of ResNetForImageClassification has none",
    ("drop-shard", "swinv2"): "--sharded needs linear layers whose inputs are batches of photos; Swinv2ForImageClassification has others",
    **{("mu-mis", name): "MU-Mis compares a photo's class with other classes" for name in ARCHITECTURES},  # these models predict attributes
}
# The second and third stop where the support images are predicted as if unseen, as by these models, which were trained for one step.
MAY_CHANGE_NOTHING = {"do-nothing", "l2ul", "reference-guided"}
FAST = [  # the kinds of architecture that broke a method: windows, cached tables, a shared table, a wrapped backbone, random masking
    *[("swin", method) for method in ("forget-keys", "drop-shard")],
    *[("beit", method) for method in ("gradient-ascent", "metaunlearn")],
    *[(name, "forget-keys") for name in ("swinv2", "convnext", "timm")],
    *[("dinov3", method) for method in ("forget-keys", "metaunlearn", "drop-shard")],
    *[("vit_mae", method) for method in ("forget-keys", "metaunlearn", "ssd", "drop-shard")],
    *[(name, "exact-head") for name in ("swinv2", "timm", "dinov3")],
    ("deit", "drop-shard"),
    ("resnet", "drop-shard"),
]
ENTRIES = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
METHOD_NAMES = sorted(ENTRIES["oneshui.methods"])
SLOW = [(name, method) for name in ARCHITECTURES for method in METHOD_NAMES if (name, method) not in FAST]


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    timm_stand_in.install(monkeypatch)
    yield


@cache
def face_sets() -> dict[str, FaceSet]:
    people = sum(SETS.values())
    store = np.stack(
        [np.asarray(portrait(person, photo, (SIDE, SIDE))).transpose(2, 0, 1) for person in range(people) for photo in range(PHOTOS)]
    )
    identity = np.repeat(np.arange(people), PHOTOS)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (people, 3)).astype(np.float32)[identity])
    number = np.searchsorted(np.cumsum(list(SETS.values())), identity, side="right")
    held_out = np.arange(len(identity)) % PHOTOS == 0

    def take(rows: np.ndarray, reserved: FaceSet | None = None) -> FaceSet:
        chosen = np.flatnonzero(rows)
        names = tuple(f"person {person}" for person in range(people))
        return FaceSet(store, chosen, labels[chosen], torch.from_numpy(identity[chosen]), Preprocess(SIDE), names, reserved)

    sets = {name: take((number == index) & ~held_out) for index, name in enumerate(SETS)}
    sets |= {"support": take((number == 1) & held_out), "reserved": take((number == 0) & held_out)}
    return sets | {"train": take((number <= 1) & ~held_out, sets["reserved"])}


def train_a_step(model: torch.nn.Module) -> torch.nn.Module:
    pixels, labels = face_sets()["train"].batch(torch.arange(8))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses(model.train()(pixel_values=pixels).logits, labels, TASK.kind).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@cache
def trained(name: str, sharded: bool, closed_form: bool) -> torch.nn.Module:
    model = classifier(name, TASK.kind, labels=len(TASK.label_names))
    model.config.id2label = dict(enumerate(TASK.label_names))  # type: ignore[union-attr]
    if closed_form:
        closed, accelerator = add_closed_form_head(model, SIDE, mirrored=True), make_accelerator()  # type: ignore[arg-type]
        set_head(closed, sum_photos(closed, face_sets()["train"], TASK, accelerator), accelerator)
        return closed
    if not sharded:
        return train_a_step(model)
    shards = {}
    model = wrap_backbone(model, SIDE, SHARDS, rank=2, seed=0)  # type: ignore[arg-type]
    for shard in range(SHARDS):
        model.initialize_shard(shard)
        shards[shard] = shard_weights(train_a_step(model), shard)  # type: ignore[arg-type]
    return combine_shards(model, shards)


def check(name: str, method: str, folder: Path) -> None:
    from transformers import pipeline

    subject = Subject.load(method, FEW_STEPS.get(method, []))
    problem = ToyProblem(copy.deepcopy(trained(name, subject.method.sharded, subject.method.closed_form)), TASK, face_sets())
    new = subject.apply(problem, subject.prepare(problem))
    assert all(tensor.isfinite().all() for tensor in new.state_dict().values())
    save_model(new, Preprocess(SIDE), folder)
    loaded, _, task = load_model(folder)
    assert task == TASK
    pixels, _ = problem.sets["test"].batch(torch.arange(2))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels).logits, new.eval()(pixel_values=pixels).logits)
    found = pipeline("image-classification", model=str(folder))(portrait(0, 0))
    assert {row["label"] for row in found} == set(TASK.label_names)
    if method not in MAY_CHANGE_NOTHING and subject.method.needs.apply:
        before = problem.model.state_dict()
        changed = new.state_dict()
        assert before.keys() != changed.keys() or any(
            a.shape != b.shape or not torch.equal(a, b) for a, b in zip(before.values(), changed.values(), strict=True)
        )


def check_or_refused(name: str, method: str, folder: Path) -> None:
    if (sentence := REFUSED.get((method, name))) is None:
        return check(name, method, folder)
    with pytest.raises(UsageError) as raised:
        check(name, method, folder)
    assert sentence in str(raised.value)
    return None


@pytest.mark.parametrize(("name", "method"), FAST)
def test_method_serves_an_architecture_that_broke_one(name: str, method: str, tmp_path: Path) -> None:
    check_or_refused(name, method, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), SLOW)
def test_method_serves_every_architecture(name: str, method: str, tmp_path: Path) -> None:
    check_or_refused(name, method, tmp_path)
