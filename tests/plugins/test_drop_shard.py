"""Dropping shards: the forget identities' shards are removed, the others are unchanged bit for bit, and errors are clear."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, Request, ShardedClassifier, shard_of
from oneshui_hf.models.sharded import shard_weights
from oneshui_hf.testing.toy_problem import SEED, SHARDS, ToyProblem, toy_problem
from oneshui_plugins.drop_shard import DropShard, DropShardOptions
from support.architectures import classifier
from support.commands import Oneshui, sentence


def request_for(problem: ToyProblem, people: list[str | None]) -> Request:
    request = problem.request
    return dataclasses.replace(request, pixels=request.pixels[:1], people=tuple(people), labels=request.labels[:1])


def drop(problem: ToyProblem, request: Request, model: torch.nn.Module | None = None, context: Context | None = None) -> ShardedClassifier:
    data = DataAccess({"support": request}, frozenset({"support"}))
    new = DropShard().apply(problem.model if model is None else model, data, None, DropShardOptions(), context or problem.context())
    assert isinstance(new, ShardedClassifier)
    return new


def members(problem: ToyProblem) -> dict[int, list[int]]:
    """Return the training identities of each shard."""
    train, found = problem.sets["train"], {}
    for person in sorted(train.positions_of):
        found.setdefault(shard_of(train.people[person], SEED, SHARDS), []).append(person)
    return found


def test_a_forget_identity_loses_its_shard_and_the_other_shards_are_unchanged() -> None:
    problem = toy_problem("multi_label", sharded=True)
    shards, train, context = members(problem), problem.sets["train"], problem.context()
    assert len(shards) == SHARDS
    for shard, people in shards.items():
        after = drop(problem, request_for(problem, [train.people[people[0]]]), context=context)
        assert after.config.shards == [other for other in range(SHARDS) if other != shard]
        assert context.report == {"shards": SHARDS - 1, "shards_dropped": 1}
        for other in after.config.shards:
            before, now = shard_weights(problem.model, other), shard_weights(after, other)
            assert all(torch.equal(before[name], now[name]) for name in before)
        own = dataclasses.replace(problem, sets={"own": train.subset(torch.cat([train.positions_of[person] for person in people]))})
        others = dataclasses.replace(problem, sets={"others": train.subset(train.positions_without(people))})
        assert own.loss(after, "own") > own.loss(problem.model, "own") + 0.01
        assert others.loss(after, "others") < others.loss(problem.model, "others")  # the average now contains more of their shards


def test_sequential_requests_equal_one_joint_request() -> None:
    problem = toy_problem("multi_label", sharded=True)
    (first, *_), (second, *_), *_ = members(problem).values()
    one, two = problem.sets["train"].people[first], problem.sets["train"].people[second]
    at_once = drop(problem, request_for(problem, [one, two]))
    in_turn = drop(problem, request_for(problem, [two]), drop(problem, request_for(problem, [one])))
    assert in_turn.config.shards == at_once.config.shards
    assert all(torch.equal(tensor, at_once.state_dict()[name]) for name, tensor in in_turn.state_dict().items())
    context = problem.context()
    again = drop(problem, request_for(problem, [one]), at_once, context)  # dropped before
    assert again.config.shards == at_once.config.shards
    assert context.report["shards_dropped"] == 0


def test_impossible_requests_raise() -> None:
    problem = toy_problem("multi_label", sharded=True)
    people = [problem.sets["train"].people[own[0]] for own in members(problem).values()]
    with pytest.raises(UsageError, match="has no shards; train one with `oneshui train --sharded`"):
        drop(problem, request_for(problem, [people[0]]), classifier("vit", "multi_label"))
    with pytest.raises(UsageError, match="--identity"):
        drop(problem, request_for(problem, [None]))
    with pytest.raises(OneshuiError, match="all 3 shards"):
        drop(problem, request_for(problem, list(people)))


def test_an_oracle_loses_the_same_shards_so_that_attacks_are_comparable() -> None:
    problem = toy_problem("multi_label", sharded=True)
    request = request_for(problem, [problem.sets["train"].people[sorted(problem.sets["train"].positions_of)[0]]])
    assert drop(problem, dataclasses.replace(request, unseen_identities=True)).config.shards == drop(problem, request).config.shards


def test_the_command_needs_an_identity_and_a_model_with_shards(photo_folder: Callable[..., Path], tmp_path: Path, oneshui: Oneshui) -> None:
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
