"""Dropping shards: those who ask go with their shard, the others' slices stay bit for bit, and what cannot be is told in a sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, Request, ShardedClassifier, shard_of
from oneshui_hf.models.sharded import part_of
from oneshui_hf.testing.toy_problem import SEED, SHARDS, World, world
from oneshui_plugins.drop_shard import DropShard, DropShardOptions
from support.architectures import classifier
from support.commands import Oneshui, sentence


def asked(w: World, people: list[str | None]) -> Request:
    request = w.request
    return dataclasses.replace(request, pixels=request.pixels[:1], people=tuple(people), labels=request.labels[:1])


def drop(w: World, request: Request, model: torch.nn.Module | None = None, context: Context | None = None) -> ShardedClassifier:
    data = DataAccess({"support": request}, frozenset({"support"}))
    new = DropShard().apply(w.model if model is None else model, data, None, DropShardOptions(), context or w.context())
    assert isinstance(new, ShardedClassifier)
    return new


def members(w: World) -> dict[int, list[int]]:
    """The training people of each shard."""
    train, found = w.sets["train"], {}
    for person in sorted(train.positions_of):
        found.setdefault(shard_of(train.people[person], SEED, SHARDS), []).append(person)
    return found


def test_who_asks_is_gone_with_their_shard_and_the_other_shards_are_as_they_were() -> None:
    w = world("multi_label", sharded=True)
    shards, train, context = members(w), w.sets["train"], w.context()
    assert len(shards) == SHARDS
    for shard, people in shards.items():
        after = drop(w, asked(w, [train.people[people[0]]]), context=context)
        assert after.config.shards == [other for other in range(SHARDS) if other != shard]
        assert context.report == {"shards": SHARDS - 1, "shards_dropped": 1}
        for other in after.config.shards:
            before, now = part_of(w.model, other), part_of(after, other)
            assert all(torch.equal(before[name], now[name]) for name in before)
        own = dataclasses.replace(w, sets={"own": train.subset(torch.cat([train.positions_of[person] for person in people]))})
        others = dataclasses.replace(w, sets={"others": train.subset(train.without(people))})
        assert own.loss(after, "own") > own.loss(w.model, "own") + 0.01
        assert others.loss(after, "others") < others.loss(w.model, "others")  # of whose shards more is heard now


def test_one_request_after_the_other_ends_where_both_at_once_do() -> None:
    w = world("multi_label", sharded=True)
    (first, *_), (second, *_), *_ = members(w).values()
    one, two = w.sets["train"].people[first], w.sets["train"].people[second]
    at_once = drop(w, asked(w, [one, two]))
    in_turn = drop(w, asked(w, [two]), drop(w, asked(w, [one])))
    assert in_turn.config.shards == at_once.config.shards
    assert all(torch.equal(tensor, at_once.state_dict()[name]) for name, tensor in in_turn.state_dict().items())
    context = w.context()
    again = drop(w, asked(w, [one]), at_once, context)  # gone already
    assert again.config.shards == at_once.config.shards
    assert context.report["shards_dropped"] == 0


def test_what_cannot_be_done_is_told() -> None:
    w = world("multi_label", sharded=True)
    people = [w.sets["train"].people[own[0]] for own in members(w).values()]
    with pytest.raises(UsageError, match="has no shards; train one with `oneshui train --sharded`"):
        drop(w, asked(w, [people[0]]), classifier("vit", "multi_label"))
    with pytest.raises(UsageError, match="--identity"):
        drop(w, asked(w, [None]))
    with pytest.raises(OneshuiError, match="all 3 shards"):
        drop(w, asked(w, list(people)))


def test_an_oracle_loses_the_same_shards_so_that_attacks_compare_like_with_like() -> None:
    w = world("multi_label", sharded=True)
    request = asked(w, [w.sets["train"].people[sorted(w.sets["train"].positions_of)[0]]])
    assert drop(w, dataclasses.replace(request, strangers=True)).config.shards == drop(w, request).config.shards


def test_the_command_takes_a_person_by_name_and_refuses_a_model_without_shards(
    photo_folder: Callable[..., Path], tmp_path: Path, oneshui: Oneshui
) -> None:
    folder = photo_folder(people=20, photos=3)
    common = ["--method", "drop-shard", "--image", folder / "p00" / "0.png"]
    recipe = ["train", "--dataset", folder, "--model", "tiny", "--epochs", "1", "--forget", "2", "--keep", "last"]
    for name, words in (("shards", ["--sharded", "3"]), ("plain", [])):
        assert oneshui(*recipe, *words, "--output-dir", tmp_path / name)[0] == 0
    code, _, err = oneshui("unlearn", "--run", tmp_path / "plain", *common, "--identity", "someone")
    assert code == 2
    assert "no shards" in sentence(err)
    code, _, err = oneshui("unlearn", "--run", tmp_path / "shards", *common)
    assert code == 2
    assert "--identity" in sentence(err)
    code, out, err = oneshui("unlearn", "--run", tmp_path / "shards", *common, "--identity", "someone", "--json")
    assert code == 0, err
    report = json.loads(out)["report"]
    assert (report["shards"], report["shards_dropped"]) == (2, 1)
    assert "someone" not in out
