"""The sharded classifier: the mean of its shards, each a low-rank change of one backbone, kept bit for bit when others come or go."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.models.load import load_model, save_model
from oneshui_hf.models.outputs import find_head, head_inputs, logits_and_features
from oneshui_hf.models.sharded import ShardedClassifier, ShardedConfig, assemble, over, part_of, shard_of, without
from oneshui_hf.runs import Record, Run, read_json
from oneshui_hf.seeding import generator
from oneshui_hf.stages.publishing.redaction import public_config
from support.architectures import classifier

SIDE, OF, RANK = 32, 4, 3
TRANSFORMERS = ["vit", "dinov2", "swin", "convnext"]  # those with linear layers


def photos(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=generator(1, "photos"))


@cache
def _single(name: str, shard: int) -> ShardedClassifier:
    model = over(classifier(name, "multi_label"), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    model.begin(shard)
    with torch.no_grad():  # as if it had learned something
        for layer, adapted in model.adapted():
            adapted.up.copy_(0.1 * torch.randn(adapted.up.shape, generator=generator(2, shard, layer)))
    return model


def single(name: str, shard: int) -> ShardedClassifier:
    """A model of one shard with an adapter that does something."""
    return copy.deepcopy(_single(name, shard))


def logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def join(models: list[ShardedClassifier]) -> ShardedClassifier:
    """Return one model with the shards of several."""
    return assemble(models[0], {shard: part_of(model, shard) for model in models for shard in model.config.shards})


def test_a_person_s_shard_is_a_hash_of_seed_and_name() -> None:
    digest = hashlib.sha256(b"3/Anna").digest()
    assert shard_of("Anna", 3, 7) == int.from_bytes(digest, "big") % 7
    people = [f"person {number}" for number in range(4000)]
    counts = Counter(shard_of(person, 0, 8) for person in people)
    assert sorted(counts) == list(range(8))
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 24.3  # chi-squared with 7 degrees of freedom, at 0.001
    agree = sum(shard_of(person, 0, 8) == shard_of(person, 1, 8) for person in people)
    assert abs(agree / len(people) - 1 / 8) < 0.03  # another seed, other shards


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_model_says_the_mean_of_what_its_shards_say(name: str) -> None:
    models = [single(name, shard) for shard in (0, 2, 3)]
    alone = torch.stack([logits(model, photos()) for model in models])
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    joined = join(models)
    assert joined.config.shards == [0, 2, 3]
    torch.testing.assert_close(logits(joined, photos()), alone.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(joined, photos()[1:2]), alone.mean(dim=0)[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_adapter_is_a_change_of_every_linear_layer(name: str) -> None:
    original, model = classifier(name, "multi_label"), single(name, 1)
    plain = copy.deepcopy(original)
    head = find_head(plain)
    layers = {layer: module for layer, module in plain.named_modules() if isinstance(module, nn.Linear) and module is not head}
    adapters = {layer.removeprefix("backbone."): adapter for layer, adapter in model.adapted()}
    assert adapters.keys() == layers.keys()
    with torch.no_grad():
        for layer, module in layers.items():
            module.weight += adapters[layer].up[0] @ adapters[layer].down[0]
        head.weight.copy_(model.head.weight)
        head.bias.zero_()
    torch.testing.assert_close(logits(model, photos()), logits(plain, photos()), rtol=1e-4, atol=1e-5)
    assert (logits(model, photos()) - logits(original, photos())).abs().max() > 1e-2


def test_a_shard_begins_where_the_backbone_is_and_by_seed_and_number_alone() -> None:
    original = classifier("vit", "multi_label")
    model = over(original, SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    first = part_of(model, 0)
    _, features = logits_and_features(original, photos())
    torch.testing.assert_close(logits_and_features(model, photos())[1], features)  # `up` is zero
    model.begin(2)
    second = part_of(model, 2)
    assert all(not torch.equal(first[name], second[name]) for name in first if not name.endswith(".up"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)  # what was learned leaves no trace
    model.begin(0)
    assert all(torch.equal(tensor, first[name]) for name, tensor in part_of(model, 0).items())


def test_dropping_and_joining_keeps_the_others_bit_for_bit() -> None:
    models = [single("vit", shard) for shard in range(4)]
    joined = join([models[2], models[0], models[3], models[1]])
    assert joined.config.shards == [0, 1, 2, 3]
    before = copy.deepcopy(joined)
    less = without(joined, {1, 2})
    assert same(joined, before)
    assert joined.config.shards == [0, 1, 2, 3]
    assert less.config.shards == [0, 3]
    assert same(less, join([models[0], models[3]]))
    assert same(join([less, without(joined, [0, 3])]), joined)
    assert same(without(less, [0]), models[3])
    for shard in (0, 3):
        alone, kept = part_of(models[shard], shard), part_of(less, shard)
        assert all(torch.equal(alone[name], kept[name]) for name in alone)
    assert not {p.data_ptr() for p in joined.parameters()} & {p.data_ptr() for p in less.parameters()}
    names = set(dict(less.named_parameters()))
    assert sum(p.numel() for p in joined.parameters()) - sum(p.numel() for p in less.parameters()) == 2 * sum(
        tensor.numel() for tensor in part_of(models[0], 0).values()
    )
    assert names == set(dict(models[0].named_parameters()))


def test_what_cannot_be_dropped_is_refused() -> None:
    model = join([single("vit", 0), single("vit", 3)])
    with pytest.raises(OneshuiError, match="no shard 1; it has 0, 3"):
        without(model, [1])
    with pytest.raises(OneshuiError, match="leave nothing"):
        without(model, [0, 3])


def test_adapter_and_head_alone_are_learned() -> None:
    model = single("vit", 0).train()
    model(pixel_values=photos()).logits.square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
    assert reached == {name for name, _ in model.named_parameters() if name.endswith((".up", ".down", "head.weight"))} != set()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == reached


def test_the_backbone_learns_no_batch_statistics_and_drops_nothing_out() -> None:
    model = over(classifier("vit", "multi_label", dropout=0.5), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    before = logits(model, photos())
    assert model.train().training
    assert torch.equal(logits(model, photos()), before)
    assert not model.eval().training


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_a_checkpoint_keeps_it(kind: str, tmp_path: Path) -> None:
    model = over(classifier("vit", kind), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    joined = without(join([model, single_of(model, 1), single_of(model, 3)]), [1])
    save_model(joined, Preprocess(SIDE), tmp_path / "run")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = torch.get_rng_state()
        loaded, _, task = load_model(tmp_path / "run")
        assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(loaded, ShardedClassifier)
    assert task.kind == kind
    assert same(loaded, joined)
    assert torch.equal(logits(loaded, photos()), logits(joined, photos()))
    assert (loaded.config.shards, loaded.config.of, loaded.config.rank, loaded.config.seed) == ([0, 3], OF, RANK, 7)
    assert same(join([loaded, single_of(model, 2)]), join([joined, single_of(model, 2)]))
    again = ShardedClassifier.from_pretrained(tmp_path / "run")
    assert same(again, joined)


def test_its_config_may_be_published_whole(tmp_path: Path) -> None:
    joined = join([single("dinov2", 0), single("dinov2", 2)])
    joined.config.id2label = {number: f"a/b {number}" for number in range(5)}
    save_model(joined, Preprocess(SIDE), tmp_path)
    run = Run(tmp_path, Record("original", 0, {}, {}))
    public = public_config(read_json(tmp_path / "config.json"), run)
    assert same_shapes(ShardedClassifier(ShardedConfig(**public)), joined)
    assert public["shards"] == [0, 2]


def same_shapes(one: nn.Module, other: nn.Module) -> bool:
    return {name: t.shape for name, t in one.state_dict().items()} == {name: t.shape for name, t in other.state_dict().items()}


def single_of(model: ShardedClassifier, shard: int) -> ShardedClassifier:
    other = copy.deepcopy(model)
    other.begin(shard)
    return other


def test_its_head_is_found_like_any_other_s() -> None:
    joined = join([single("vit", 0), single("vit", 1)])
    assert find_head(joined) is joined.head
    assert head_inputs(joined) == 2 * 24
    with torch.no_grad():
        said, features = logits_and_features(joined, photos())
        assert torch.equal(said, joined.head(features))
        apart = torch.cat([logits_and_features(single("vit", shard), photos())[1] / 2 for shard in (0, 1)], dim=1)
    torch.testing.assert_close(features, apart, rtol=1e-4, atol=1e-6)


def test_a_backbone_that_shards_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="has none"):
        over(classifier("resnet", "multi_label"), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]

    from transformers import Swinv2Config, Swinv2ForImageClassification

    sizes = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    model = Swinv2ForImageClassification(Swinv2Config(image_size=32, patch_size=4, num_labels=5, **sizes))
    with pytest.raises(UsageError, match="one photo after the other"):  # the net of its position bias sees no photos
        over(model, SIDE, OF, RANK, seed=7)
