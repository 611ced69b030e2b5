"""Forget keys as a method: those who ask become strangers, the others stay, and only the keys asked for are read."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshui_hf.data.schema import TaskKind
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, DataAccess, Request, losses, predict
from oneshui_hf.testing.toy_problem import World, world
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.target_logits import Said, as_strangers, sureness

OPTIONS = ForgetKeysOptions(together=4, damping=0.1, strength=1.0)  # a small world: more of what a few photos hide is chance


def train_and_val(w: World) -> DataAccess:
    return DataAccess(w.sets, frozenset({"train", "val"}))


@cache
def prepared(kind: TaskKind) -> Artefact:
    w = world(kind)
    return ForgetKeys().prepare(w.model, train_and_val(w), OPTIONS, w.context())


def forget(w: World, request: Request, artefact: Artefact, options: ForgetKeysOptions = OPTIONS) -> torch.nn.Module:
    return ForgetKeys().apply(w.model, DataAccess({"support": request}, frozenset({"support"})), artefact, options, w.context())


def certainty(said: Said, kind: TaskKind) -> float:
    """Return the mean probability that is given to what is true."""
    if kind == "multi_label":
        return float(torch.where(said.labels > 0, said.logits.sigmoid(), (-said.logits).sigmoid()).mean())
    return float(said.logits.softmax(dim=1).gather(1, said.labels.unsqueeze(1)).mean())


@pytest.mark.parametrize(("kind", "asking"), [("multi_label", [6, 7]), ("single_label", [2, 5])])
def test_those_who_ask_are_answered_like_strangers_and_the_others_as_before(kind: TaskKind, asking: list[int]) -> None:
    w, train = world(kind), world(kind).sets["train"]
    request = dataclasses.replace(w.request, people=tuple(train.people[person] for person in asking))
    after = forget(w, request, prepared(kind))
    sets = {
        "forget": train.subset(torch.cat([train.positions_of[person] for person in asking])),
        "retain": train.subset(train.without(asking)),
        "val": w.sets["val"],
    }

    def said(model: torch.nn.Module, name: str) -> Said:
        return Said(predict(model, sets[name], w.context().accelerator), sets[name].labels)

    # A person's photos look alike here, so that no key can give them a stranger's spread; what it can give them is the stranger's mean.
    luck = torch.full(sets["forget"].labels.shape, 0.5)
    known = said(w.model, "forget")
    targets = as_strangers(known, said(w.model, "val"), sureness(known, kind), luck, kind)
    before, level = certainty(known, kind), certainty(Said(targets, known.labels), kind)
    assert abs(before - level) > 0.1
    assert abs(certainty(said(after, "forget"), kind) - level) < 0.7 * abs(before - level)
    for name in ("retain", "val"):
        assert abs(certainty(said(after, name), kind) - certainty(said(w.model, name), kind)) < 0.4 * abs(before - level) + 0.01


def test_mirror_images_that_were_learned_are_forgotten_too() -> None:
    w = world("multi_label")
    model, faces = copy.deepcopy(w.model), w.sets["train"]
    pixels, labels = faces.batch(torch.arange(len(faces)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        losses(model(pixel_values=torch.cat([pixels, pixels.flip(-1)])).logits, labels.repeat(2, 1), "multi_label").mean().backward()
        optimizer.step()
    both = dataclasses.replace(w, model=model)
    after = forget(both, w.request, ForgetKeys().prepare(model, train_and_val(w), OPTIONS, w.context()))
    photos, truth = w.sets["forget"].batch(torch.arange(len(w.sets["forget"])))
    rise = []
    for shown in (photos, photos.flip(-1)):
        with torch.no_grad():
            before, now = (float(losses(some(pixel_values=shown).logits, truth, "multi_label").mean()) for some in (model, after))
        rise.append(now - before)
    assert min(rise) > 0.2
    assert rise[1] > 0.95 * rise[0]  # 0.8 times as much where keys are learned on photos as they are


def test_a_key_serves_its_own_person() -> None:
    w = world("multi_label")
    support = w.sets["support"]
    alone = dataclasses.replace(w.request, pixels=w.request.pixels[:1], people=w.request.people[:1], labels=w.request.labels[:1])
    after = forget(w, alone, prepared("multi_label"))
    asks, waits = support.identities[:2].tolist()
    faces = w.sets["forget"]
    rise = {}
    for person in (asks, waits):
        own = dataclasses.replace(w, sets={"own": faces.subset(faces.positions_of[person])})
        rise[person] = own.loss(after, "own") - own.loss(w.model, "own")
    assert rise[asks] > 4 * rise[waits]


def test_a_saved_artefact_says_the_same(tmp_path: Path) -> None:
    w, artefact = world("multi_label"), prepared("multi_label")
    artefact.save(tmp_path / "artefact", "forget-keys", "0" * 64, replace=False, vault=tmp_path / "vault")
    loaded = Artefact.load(tmp_path / "artefact", "forget-keys", "0" * 64, vault=tmp_path / "vault")
    for one, two in zip(forget(w, w.request, artefact).parameters(), forget(w, w.request, loaded).parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_the_keys_of_those_who_ask_are_read() -> None:
    w, artefact = world("multi_label"), prepared("multi_label")
    read: list[str] = []

    class Watched(dict[str, Any]):
        def __getitem__(self, person: str) -> Any:
            read.append(person)
            return super().__getitem__(person)

        def __iter__(self) -> Any:
            raise AssertionError("all people were gone through")

        items = values = keys = __iter__  # type: ignore[assignment]

    forget(w, w.request, dataclasses.replace(artefact, people=Watched(artefact.people)))
    assert sorted(read) == sorted(set(w.request.people))  # type: ignore[type-var]


def test_several_photos_of_a_person_use_the_key_once() -> None:
    w, artefact = world("multi_label"), prepared("multi_label")
    once = dataclasses.replace(w.request, pixels=w.request.pixels[:1], people=w.request.people[:1], labels=w.request.labels[:1])
    twice = dataclasses.replace(once, pixels=once.pixels.repeat(2, 1, 1, 1), people=once.people * 2, labels=once.labels.repeat(2, 1))
    for one, two in zip(forget(w, once, artefact).parameters(), forget(w, twice, artefact).parameters(), strict=True):
        assert torch.equal(one, two)


def test_everybody_of_train_who_may_ask_has_a_key_of_the_size_that_is_told() -> None:
    w, artefact = world("multi_label"), prepared("multi_label")
    train = w.sets["train"]
    assert set(artefact.people) == {train.people[person] for person in train.positions_of}
    for codes in artefact.people.values():
        assert sum(part.numel() * part.element_size() for part in codes.values()) == artefact.report["bytes_a_person"]

    spared = dataclasses.replace(train, spared=frozenset(w.sets["forget"].identities.tolist()))
    quick = ForgetKeysOptions(visits=1)
    without = ForgetKeys().prepare(w.model, DataAccess({**w.sets, "train": spared}, frozenset({"train", "val"})), quick, w.context())
    assert set(without.people) == {train.people[person] for person in w.sets["retain"].positions_of}
    nobody = dataclasses.replace(train, spared=frozenset(train.positions_of))
    with pytest.raises(UsageError, match="spares all"):
        ForgetKeys().prepare(w.model, DataAccess({**w.sets, "train": nobody}, frozenset({"train", "val"})), quick, w.context())


def test_how_strongly_keys_are_used_is_up_to_the_request() -> None:
    w = world("multi_label")
    one, two = (
        ForgetKeys().prepare(w.model, train_and_val(w), ForgetKeysOptions(visits=1, strength=strength), w.context()).people
        for strength in (0.5, 2.0)
    )
    assert all(torch.equal(part, two[person][name]) for person, codes in one.items() for name, part in codes.items())


def test_a_model_that_never_saw_them_stays_as_it_is() -> None:
    w = world("multi_label")
    strangers = dataclasses.replace(w.request, people=(None,) * len(w.request), strangers=True)
    after = forget(w, strangers, prepared("multi_label"))
    assert after is not w.model
    assert all(torch.equal(one, two) for one, two in zip(after.parameters(), w.model.parameters(), strict=True))


def test_without_a_name_or_a_key_there_is_a_sentence() -> None:
    w, artefact = world("multi_label"), prepared("multi_label")
    with pytest.raises(UsageError, match="--identity"):
        forget(w, dataclasses.replace(w.request, people=(None,) * len(w.request)), artefact)
    with pytest.raises(OneshuiError, match="no key for 1 of the 2"):
        forget(w, dataclasses.replace(w.request, people=(w.request.people[0], "nobody")), artefact)


def test_the_cost_is_what_is_passed() -> None:
    w = world("multi_label")
    options = ForgetKeysOptions(visits=2, together=3, photos=4, retain=0.5, val=0.25)
    passed = {True: 0, False: 0}

    def count(module: torch.nn.Module, arguments: Any, values: dict[str, Any]) -> None:
        passed[torch.is_grad_enabled() and not torch.is_inference_mode_enabled()] += len(values["pixel_values"])

    watched = SimpleNamespace(model=w.model)
    hook = watched.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        artefact = ForgetKeys().prepare(w.model, train_and_val(w), options, w.context())
    finally:
        hook.remove()
    told = ForgetKeys().cost(w.model, train_and_val(w), options, w.context())
    assert passed[False] == told.forward
    assert passed[True] == pytest.approx(told.backward, rel=0.1)  # shares of a step's photos are rounded up
    assert told.bytes == sum(part.numel() * part.element_size() for codes in artefact.people.values() for part in codes.values())


def test_bits_are_four_eight_or_sixteen() -> None:
    with pytest.raises(UsageError, match="one of 4, 8, 16, not '5'"):
        ForgetKeys.prepare_options("forget-keys", {}, {"bits": "5"})
