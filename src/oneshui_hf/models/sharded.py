"""A sharded classifier: one frozen pretrained backbone, and one set of low-rank adapters per shard, trained on its identities only.

Every linear layer of the backbone has one adapter per shard (LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
2022), and the head has one block of weights per shard. The logits are the mean of the shards' logits. Each person belongs to one shard, so
exact unlearning of a person drops or retrains that shard only (sharded training: Bourtoule et al., "Machine Unlearning", IEEE S&P 2021).

The adapters are implemented here and not with `peft`: they are stacked, one slice per shard, so that all shards run in one batch, and
dropping or combining shards keeps the slices of the others bit for bit.

Importing this module registers the architecture with transformers (see `register`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import OneshuiError, UsageError
from ..seeding import generator, seeded
from .nested_config import nested_config, read_nested_config
from .outputs import find_head, module_name

ShardWeights = dict[str, torch.Tensor]  # the slices of one shard, under their names in a model of that shard alone
HEAD_STD = 0.02  # of a block of the head, if the backbone's config names none


def shard_of(identity: str, seed: int, of: int) -> int:
    """Return the shard of a person, 0 to `of` - 1: the SHA-256 of "seed/identity", modulo `of`. No list of people has to be stored."""
    return int(hashlib.sha256(f"{seed}/{identity}".encode()).hexdigest(), 16) % of


class ShardedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The architecture of a sharded classifier.

    Attributes:
        backbone: The config of the backbone.
        shards: Numbers of the remaining shards, in the order of their slices.
        of: Initial number of shards.
        rank: Rank of the adapters.
        seed: Seed of the assignment of people to shards, and of the initial adapters and head.
    """

    model_type = "oneshui_sharded"

    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    shards: list[int] = dataclasses.field(default_factory=lambda: [0])
    of: int = 2
    rank: int = 16
    seed: int = 0


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter for each of k shards: x of shard s is mapped to `W x + b + up_s down_s x`.

    Attributes:
        up: (k, out, r).
        down: (k, r, in).
    """

    def __init__(self, layer: nn.Linear, shards: int, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.up = nn.Parameter(layer.weight.new_zeros(shards, layer.out_features, rank))
        self.down = nn.Parameter(layer.weight.new_zeros(shards, rank, layer.in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (k * n, ..., in), shard by shard, to (k * n, ..., out)."""
        low = torch.bmm(x.reshape(len(self.up), -1, self.in_features), self.down.transpose(1, 2))
        output = F.linear(x, self.weight, self.bias)
        return output + torch.bmm(low, self.up.transpose(1, 2)).reshape(output.shape)


class ShardedClassifier(PreTrainedModel):  # type: ignore[misc]
    """A backbone with adapters and a block of the head for each shard; the logits are the mean of the shards' logits.

    The input of the head is the concatenation of all shards' features, divided by the number of shards: `sum_s W_s f_s / k`. A shard is a
    block of the head's columns, and the model has one head and one feature vector like any other classifier.
    """

    config_class = ShardedConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ShardedConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(read_nested_config(config.backbone), trust_remote_code=False)
        head = find_head(self.backbone)
        self.backbone.set_submodule(module_name(self.backbone, head), nn.Identity())  # its logits are now the features
        for name, layer in list(self.backbone.named_modules()):
            if type(layer) is nn.Linear:  # the weights of subclasses are often used without their forward
                self.backbone.set_submodule(name, AdaptedLinear(layer, len(config.shards), config.rank))
        self.head = nn.Linear(len(config.shards) * head.in_features, config.num_labels, bias=False)
        self.post_init()

    def train(self, mode: bool = True) -> ShardedClassifier:
        """Set the mode. The backbone stays in evaluation mode: its batch statistics would depend on people of all shards."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        """Return the logits of photos (n, 3, S, S)."""
        shards = len(self.config.shards)
        features = self.backbone(pixel_values=pixel_values.repeat(shards, 1, 1, 1)).logits
        concatenated = features.unflatten(0, (shards, -1)).transpose(0, 1).flatten(1) / shards
        return ImageClassifierOutput(logits=self.head(concatenated))

    def adapted_layers(self) -> Iterator[tuple[str, AdaptedLinear]]:
        """Yield the layers with adapters, by name."""
        yield from ((name, layer) for name, layer in self.named_modules() if isinstance(layer, AdaptedLinear))

    def initialize_shard(self, shard: int) -> None:
        """Turn a model of one shard into a new, untrained model of this shard: `up` is zero, `down` and the head are random."""
        seed = self.config.seed
        self.config.shards = [shard]
        with torch.no_grad():
            for name, layer in self.adapted_layers():
                bound = 1 / math.sqrt(layer.in_features)  # as torch initialises a linear layer, and `peft` this matrix
                draws = torch.rand(layer.down.shape, generator=generator(seed, "adapter", shard, name))
                layer.down.copy_((2 * draws - 1) * bound)
                layer.up.zero_()
            std = self.config.backbone.get("initializer_range") or HEAD_STD
            self.head.weight.copy_(std * torch.randn(self.head.weight.shape, generator=generator(seed, "head", shard)))


AutoConfig.register(ShardedConfig.model_type, ShardedConfig, exist_ok=True)
AutoModelForImageClassification.register(ShardedConfig, ShardedClassifier, exist_ok=True)


def wrap_backbone(backbone: PreTrainedModel, size: int, of: int, rank: int, seed: int) -> ShardedClassifier:
    """Return a model of shard 0 over the backbone of a classifier. Only adapters and head require gradients.

    `initialize_shard` turns it into a model of any other shard.

    Args:
        backbone: Any image classifier of transformers; its head is not used.
        size: Side of its photos in pixels.
        of: Number of shards.
        rank: Rank of the adapters.
        seed: Seed of the assignment of people to shards, and of the initial adapters and head.

    Raises:
        UsageError: The backbone has no linear layers, or the first dimension of their inputs is not the batch of photos.
    """
    config = ShardedConfig(
        backbone=nested_config(backbone.config),
        of=of,
        rank=rank,
        seed=seed,
        id2label=backbone.config.id2label,
        label2id=backbone.config.label2id,
        problem_type=backbone.config.problem_type,
    )
    with seeded(seed, "replaced at once"):
        model = ShardedClassifier(config)
    head = module_name(backbone, find_head(backbone))
    state = {name: tensor for name, tensor in backbone.state_dict().items() if name.rpartition(".")[0] != head}
    mismatch = model.backbone.load_state_dict(state, strict=False)
    assert not mismatch.unexpected_keys and all(name.endswith((".up", ".down")) for name in mismatch.missing_keys)
    trained = {id(model.head.weight)} | {id(part) for _, layer in model.adapted_layers() for part in (layer.up, layer.down)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    _require_batches(model, size, type(backbone).__name__)
    model.initialize_shard(0)
    return model.eval()


def shard_weights(model: ShardedClassifier, shard: int) -> ShardWeights:
    """Return copies of the slices of a shard, on the CPU."""
    index, width = model.config.shards.index(shard), model.head.in_features // len(model.config.shards)
    slices = {
        f"{name}.{matrix}": getattr(layer, matrix)[index : index + 1] for name, layer in model.adapted_layers() for matrix in ("up", "down")
    }
    slices["head.weight"] = model.head.weight[:, index * width : (index + 1) * width]
    return {name: tensor.detach().cpu().clone() for name, tensor in slices.items()}


def combine_shards(template: ShardedClassifier, weights: Mapping[int, ShardWeights]) -> ShardedClassifier:
    """Return a model with the backbone of `template` and these shards, in the order of their numbers."""
    new, shards = copy.deepcopy(template), sorted(weights)
    new.config.shards = shards

    def stacked(name: str, old: torch.Tensor, dim: int) -> nn.Parameter:
        return nn.Parameter(torch.cat([weights[shard][name] for shard in shards], dim).to(old.device), old.requires_grad)

    for name, layer in new.adapted_layers():
        layer.up, layer.down = stacked(f"{name}.up", layer.up, 0), stacked(f"{name}.down", layer.down, 0)
    new.head.weight = stacked("head.weight", new.head.weight, 1)
    new.head.in_features = new.head.weight.shape[1]
    return new


def drop_shards(model: ShardedClassifier, shards: Collection[int]) -> ShardedClassifier:
    """Return a model without these shards; the remaining weights are the same bit for bit.

    Raises:
        OneshuiError: One of the shards is missing, or no shard would remain.
    """
    present = model.config.shards
    if missing := sorted(set(shards) - set(present)):
        raise OneshuiError(f"The model has no shard {missing[0]}; it has {', '.join(map(str, present))}.")
    remaining = [shard for shard in present if shard not in shards]
    if not remaining:
        raise OneshuiError(f"This would drop all {len(present)} shards of the model; retrain it with `oneshui retrain` instead.")
    return combine_shards(model, {shard: shard_weights(model, shard) for shard in remaining})


def _require_batches(model: ShardedClassifier, size: int, kind: str) -> None:
    """Check that the first dimension of every adapted layer's input is the batch, since all shards run in one batch.

    Raises:
        UsageError: This does not hold for a layer, or there is no linear layer.
    """
    layers = dict(model.adapted_layers())
    if not layers:
        raise UsageError(f"--sharded adapts linear layers, and the backbone of {kind} has none; use a transformer.")
    one, two = (_input_batch_sizes(model, layers, size, photos) for photos in (1, 2))
    if any([2 * count for count in one[name]] != two[name] for name in layers):
        raise UsageError(f"--sharded needs linear layers whose inputs are batches of photos; {kind} has others, so use another model.")


def _input_batch_sizes(model: ShardedClassifier, layers: Mapping[str, nn.Module], size: int, photos: int) -> dict[str, list[int]]:
    """Return the length of each adapted layer's inputs, per call, in one forward pass of black photos."""
    sizes: dict[str, list[int]] = {name: [] for name in layers}

    def record(name: str) -> Any:
        return lambda _, inputs: sizes[name].append(len(inputs[0]))

    hooks = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.eval()(pixel_values=torch.zeros(photos, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sizes
