"""The sharded classifier: the mean of its shards, each a low-rank update of one backbone; adding or dropping shards keeps the others."""

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
from oneshui_hf.models.outputs import feature_dim, find_head, logits_and_features
from oneshui_hf.models.sharded import ShardedClassifier, ShardedConfig, combine_shards, drop_shards, shard_of, shard_weights, wrap_backbone
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
    model = wrap_backbone(classifier(name, "multi_label"), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    model.initialize_shard(shard)
    with torch.no_grad():  # as after training
        for name_of_layer, layer in model.adapted_layers():
            layer.up.copy_(0.1 * torch.randn(layer.up.shape, generator=generator(2, shard, name_of_layer)))
    return model


def single_shard(name: str, shard: int) -> ShardedClassifier:
    """Return a model of one shard with nonzero adapters."""
    return copy.deepcopy(_single(name, shard))


def logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels).logits


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def join(models: list[ShardedClassifier]) -> ShardedClassifier:
    """Return one model with the shards of several."""
    return combine_shards(models[0], {shard: shard_weights(model, shard) for model in models for shard in model.config.shards})


def test_shard_of_a_person_is_a_hash_of_seed_and_name() -> None:
    digest = hashlib.sha256(b"3/Anna").digest()
    assert shard_of("Anna", 3, 7) == int.from_bytes(digest, "big") % 7
    people = [f"person {number}" for number in range(4000)]
    counts = Counter(shard_of(person, 0, 8) for person in people)
    assert sorted(counts) == list(range(8))
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 24.3  # chi-squared with 7 degrees of freedom, at 0.001
    equal = sum(shard_of(person, 0, 8) == shard_of(person, 1, 8) for person in people)
    assert abs(equal / len(people) - 1 / 8) < 0.03  # another seed, other shards


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_logits_are_the_mean_of_the_shards_logits(name: str) -> None:
    models = [single_shard(name, shard) for shard in (0, 2, 3)]
    alone = torch.stack([logits(model, photos()) for model in models])
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    joined = join(models)
    assert joined.config.shards == [0, 2, 3]
    torch.testing.assert_close(logits(joined, photos()), alone.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(joined, photos()[1:2]), alone.mean(dim=0)[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_adapters_update_every_linear_layer(name: str) -> None:
    original, model = classifier(name, "multi_label"), single_shard(name, 1)
    plain = copy.deepcopy(original)
    head = find_head(plain)
    layers = {layer: module for layer, module in plain.named_modules() if isinstance(module, nn.Linear) and module is not head}
    adapters = {layer.removeprefix("backbone."): adapter for layer, adapter in model.adapted_layers()}
    assert adapters.keys() == layers.keys()
    with torch.no_grad():
        for layer, module in layers.items():
            module.weight += adapters[layer].up[0] @ adapters[layer].down[0]
        head.weight.copy_(model.head.weight)
        head.bias.zero_()
    torch.testing.assert_close(logits(model, photos()), logits(plain, photos()), rtol=1e-4, atol=1e-5)
    assert (logits(model, photos()) - logits(original, photos())).abs().max() > 1e-2


def test_initial_shard_equals_the_backbone_and_depends_on_seed_and_number_only() -> None:
    original = classifier("vit", "multi_label")
    model = wrap_backbone(original, SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    first = shard_weights(model, 0)
    _, features = logits_and_features(original, photos())
    torch.testing.assert_close(logits_and_features(model, photos())[1], features)  # `up` is zero
    model.initialize_shard(2)
    second = shard_weights(model, 2)
    assert all(not torch.equal(first[name], second[name]) for name in first if not name.endswith(".up"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(parameter.requires_grad)  # training must not affect the next initialisation
    model.initialize_shard(0)
    assert all(torch.equal(tensor, first[name]) for name, tensor in shard_weights(model, 0).items())


def test_dropping_and_combining_shards_keeps_the_others_bit_for_bit() -> None:
    models = [single_shard("vit", shard) for shard in range(4)]
    joined = join([models[2], models[0], models[3], models[1]])
    assert joined.config.shards == [0, 1, 2, 3]
    before = copy.deepcopy(joined)
    less = drop_shards(joined, {1, 2})
    assert same(joined, before)
    assert joined.config.shards == [0, 1, 2, 3]
    assert less.config.shards == [0, 3]
    assert same(less, join([models[0], models[3]]))
    assert same(join([less, drop_shards(joined, [0, 3])]), joined)
    assert same(drop_shards(less, [0]), models[3])
    for shard in (0, 3):
        alone, kept = shard_weights(models[shard], shard), shard_weights(less, shard)
        assert all(torch.equal(alone[name], kept[name]) for name in alone)
    assert not {p.data_ptr() for p in joined.parameters()} & {p.data_ptr() for p in less.parameters()}
    names = set(dict(less.named_parameters()))
    assert sum(p.numel() for p in joined.parameters()) - sum(p.numel() for p in less.parameters()) == 2 * sum(
        tensor.numel() for tensor in shard_weights(models[0], 0).values()
    )
    assert names == set(dict(models[0].named_parameters()))


def test_dropping_a_missing_shard_or_all_shards_raises() -> None:
    model = join([single_shard("vit", 0), single_shard("vit", 3)])
    with pytest.raises(OneshuiError, match="no shard 1; it has 0, 3"):
        drop_shards(model, [1])
    with pytest.raises(OneshuiError, match="drop all 2 shards"):
        drop_shards(model, [0, 3])


def test_only_adapters_and_head_are_trained() -> None:
    model = single_shard("vit", 0).train()
    model(pixel_values=photos()).logits.square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().max() > 0}
    assert reached == {name for name, _ in model.named_parameters() if name.endswith((".up", ".down", "head.weight"))} != set()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == reached


def test_backbone_has_no_dropout_and_no_batch_statistics_in_training() -> None:
    model = wrap_backbone(classifier("vit", "multi_label", dropout=0.5), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    before = logits(model, photos())
    assert model.train().training
    assert torch.equal(logits(model, photos()), before)
    assert not model.eval().training


@pytest.mark.parametrize("kind", ["multi_label", "single_label"])
def test_checkpoint_round_trip(kind: str, tmp_path: Path) -> None:
    model = wrap_backbone(classifier("vit", kind), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]
    joined = drop_shards(join([model, single_of(model, 1), single_of(model, 3)]), [1])
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


def test_public_config_describes_the_whole_architecture(tmp_path: Path) -> None:
    joined = join([single_shard("dinov2", 0), single_shard("dinov2", 2)])
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
    other.initialize_shard(shard)
    return other


def test_head_and_features_are_found() -> None:
    joined = join([single_shard("vit", 0), single_shard("vit", 1)])
    assert find_head(joined) is joined.head
    assert feature_dim(joined) == 2 * 24
    with torch.no_grad():
        output, features = logits_and_features(joined, photos())
        assert torch.equal(output, joined.head(features))
        apart = torch.cat([logits_and_features(single_shard("vit", shard), photos())[1] / 2 for shard in (0, 1)], dim=1)
    torch.testing.assert_close(features, apart, rtol=1e-4, atol=1e-6)


def test_unsupported_backbone_raises() -> None:
    with pytest.raises(UsageError, match="has none"):
        wrap_backbone(classifier("resnet", "multi_label"), SIDE, OF, RANK, seed=7)  # type: ignore[arg-type]

    from transformers import Swinv2Config, Swinv2ForImageClassification

    sizes = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    model = Swinv2ForImageClassification(Swinv2Config(image_size=32, patch_size=4, num_labels=5, **sizes))
    with pytest.raises(UsageError, match="inputs are batches of photos"):  # the input of its position bias network is no photo
        wrap_backbone(model, SIDE, OF, RANK, seed=7)
