"""A sharded classifier: one pretrained backbone that is never trained, and low-rank adapters that each know the people of one shard alone.

Every linear layer of the backbone has, for each shard, an adapter of its own (LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models", ICLR 2022), and the head has a block for each. What the model says is the mean of what its shards say. A person belongs
to one shard, so forgetting them exactly means to drop that shard, or to train that one anew (sharded training: Bourtoule et al.,
"Machine Unlearning", IEEE S&P 2021).

The adapters are this module's own and not those of `peft`: they lie stacked, one slice a shard, so that all shards run in one batch, and
dropping shards or putting them together keeps the slices of the others bit for bit.

Whoever loads a checkpoint without this package's commands imports this module first: it tells transformers of the architecture.
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
from .outputs import find_head

Part = dict[str, torch.Tensor]  # the slices of one shard, under the names that they have in a model of that shard alone
HEAD_STD = 0.02  # of a block of the head, where the backbone's config names none
# Of a backbone's config: what is said by the whole model's, and what is of no use beside its weights.
LEFT_OUT = ("id2label", "label2id", "problem_type", "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path")


def shard_of(identity: str, seed: int, of: int) -> int:
    """Return the shard of a person, 0 to `of` - 1: the SHA-256 of "seed/identity", modulo `of`. So no list of people has to be kept."""
    return int(hashlib.sha256(f"{seed}/{identity}".encode()).hexdigest(), 16) % of


class ShardedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The architecture of a sharded classifier.

    Attributes:
        backbone: The config of the backbone.
        shards: The shards that are there, in the order of their slices.
        of: How many there were to begin with.
        rank: Of the adapters.
        seed: By which people were told apart, and adapters and head were drawn.
    """

    model_type = "oneshui_sharded"

    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    shards: list[int] = dataclasses.field(default_factory=lambda: [0])
    of: int = 2
    rank: int = 16
    seed: int = 0


class AdaptedLinear(nn.Linear):
    """A linear layer with an adapter for each of k shards: x of shard s goes to `W x + b + up_s down_s x`.

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
        said = F.linear(x, self.weight, self.bias)
        return said + torch.bmm(low, self.up.transpose(1, 2)).reshape(said.shape)


class ShardedClassifier(PreTrainedModel):  # type: ignore[misc]
    """A backbone, an adapter and a block of the head for each shard; the logits are the mean of the shards' logits.

    The features of all shards lie side by side, divided by their number, before one head: `sum_s W_s f_s / k`. So a shard is a block of
    the head's columns, and the model has one head and one vector of features like any other.
    """

    config_class = ShardedConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ShardedConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModelForImageClassification.from_config(AutoConfig.for_model(**config.backbone))
        head = find_head(self.backbone)
        self.backbone.set_submodule(_name_of(self.backbone, head), nn.Identity())  # its logits are the features now
        for name, layer in list(self.backbone.named_modules()):
            if type(layer) is nn.Linear:  # subclasses are often used by their weights, past their forward
                self.backbone.set_submodule(name, AdaptedLinear(layer, len(config.shards), config.rank))
        self.head = nn.Linear(len(config.shards) * head.in_features, config.num_labels, bias=False)
        self.post_init()

    def train(self, mode: bool = True) -> ShardedClassifier:
        """Set the mode. The backbone stays in evaluation mode: its batch statistics would learn from people, and no shard owns them."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        """Return the logits of photos (n, 3, S, S)."""
        shards = len(self.config.shards)
        features = self.backbone(pixel_values=pixel_values.repeat(shards, 1, 1, 1)).logits
        beside = features.unflatten(0, (shards, -1)).transpose(0, 1).flatten(1) / shards
        return ImageClassifierOutput(logits=self.head(beside))

    def adapted(self) -> Iterator[tuple[str, AdaptedLinear]]:
        """Yield the layers with adapters, by name."""
        yield from ((name, layer) for name, layer in self.named_modules() if isinstance(layer, AdaptedLinear))

    def begin(self, shard: int) -> None:
        """Make a model of one shard that of another one, which has learned nothing: `up` is zero, `down` and the head are drawn."""
        seed = self.config.seed
        self.config.shards = [shard]
        with torch.no_grad():
            for name, layer in self.adapted():
                bound = 1 / math.sqrt(layer.in_features)  # as torch draws a linear layer, and `peft` this matrix
                draws = torch.rand(layer.down.shape, generator=generator(seed, "adapter", shard, name))
                layer.down.copy_((2 * draws - 1) * bound)
                layer.up.zero_()
            std = self.config.backbone.get("initializer_range") or HEAD_STD
            self.head.weight.copy_(std * torch.randn(self.head.weight.shape, generator=generator(seed, "head", shard)))


AutoConfig.register(ShardedConfig.model_type, ShardedConfig, exist_ok=True)
AutoModelForImageClassification.register(ShardedConfig, ShardedClassifier, exist_ok=True)


def over(backbone: PreTrainedModel, size: int, of: int, rank: int, seed: int) -> ShardedClassifier:
    """Return a model of one shard over a classifier's backbone, ready to `begin` with any. Adapter and head alone ask for gradients.

    Args:
        backbone: Any image classifier of transformers, whose head is left out.
        size: Side of its photos in pixels.
        of: How many shards there will be.
        rank: Of the adapters.
        seed: For who belongs to which shard, and for what is drawn.

    Raises:
        UsageError: The backbone has no linear layers, or they see something else than a batch of photos.
    """
    config = ShardedConfig(
        backbone={key: value for key, value in backbone.config.to_dict().items() if key not in LEFT_OUT},
        of=of,
        rank=rank,
        seed=seed,
        id2label=backbone.config.id2label,
        label2id=backbone.config.label2id,
        problem_type=backbone.config.problem_type,
    )
    with seeded(seed, "replaced at once"):
        model = ShardedClassifier(config)
    head = _name_of(backbone, find_head(backbone))
    state = {name: tensor for name, tensor in backbone.state_dict().items() if name.rpartition(".")[0] != head}
    unknown = model.backbone.load_state_dict(state, strict=False)
    assert not unknown.unexpected_keys and all(name.endswith((".up", ".down")) for name in unknown.missing_keys)
    learns = {id(model.head.weight)} | {id(part) for _, layer in model.adapted() for part in (layer.up, layer.down)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learns)
    _require_batches(model, size, type(backbone).__name__)
    model.begin(0)
    return model.eval()


def part_of(model: ShardedClassifier, shard: int) -> Part:
    """Return copies of the slices of a shard, on the CPU."""
    place, width = model.config.shards.index(shard), model.head.in_features // len(model.config.shards)
    slices = {f"{name}.{matrix}": getattr(layer, matrix)[place : place + 1] for name, layer in model.adapted() for matrix in ("up", "down")}
    slices["head.weight"] = model.head.weight[:, place * width : (place + 1) * width]
    return {name: tensor.detach().cpu().clone() for name, tensor in slices.items()}


def assemble(like: ShardedClassifier, parts: Mapping[int, Part]) -> ShardedClassifier:
    """Return a model with the backbone of `like` and these shards, in the order of their numbers."""
    new, shards = copy.deepcopy(like), sorted(parts)
    new.config.shards = shards

    def stacked(name: str, old: torch.Tensor, dim: int) -> nn.Parameter:
        return nn.Parameter(torch.cat([parts[shard][name] for shard in shards], dim).to(old.device), old.requires_grad)

    for name, layer in new.adapted():
        layer.up, layer.down = stacked(f"{name}.up", layer.up, 0), stacked(f"{name}.down", layer.down, 0)
    new.head.weight = stacked("head.weight", new.head.weight, 1)
    new.head.in_features = new.head.weight.shape[1]
    return new


def without(model: ShardedClassifier, shards: Collection[int]) -> ShardedClassifier:
    """Return a model without these shards; what is left of it is the same bit for bit.

    Raises:
        OneshuiError: One of them is not there, or no other would be left.
    """
    there = model.config.shards
    if missing := sorted(set(shards) - set(there)):
        raise OneshuiError(f"The model has no shard {missing[0]}; it has {', '.join(map(str, there))}.")
    left = [shard for shard in there if shard not in shards]
    if not left:
        raise OneshuiError(f"This would drop all {len(there)} shards of the model and leave nothing; train it anew with `oneshui retrain`.")
    return assemble(model, {shard: part_of(model, shard) for shard in left})


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _require_batches(model: ShardedClassifier, size: int, kind: str) -> None:
    """Check that every adapted layer sees the photos of a batch one after the other, since all shards go through it in one batch.

    Raises:
        UsageError: One does not, or there is none.
    """
    layers = dict(model.adapted())
    if not layers:
        raise UsageError(f"--sharded adapts linear layers, and the backbone of {kind} has none; take a transformer.")
    one, two = (_rows(model, layers, size, photos) for photos in (1, 2))
    if any([2 * number for number in one[name]] != two[name] for name in layers):
        raise UsageError(f"--sharded needs linear layers that see one photo after the other; {kind} has others, so take another model.")


def _rows(model: ShardedClassifier, layers: Mapping[str, nn.Module], size: int, photos: int) -> dict[str, list[int]]:
    """Return the length of each adapted layer's inputs in one pass of black photos, call by call."""
    seen: dict[str, list[int]] = {name: [] for name in layers}

    def note(name: str) -> Any:
        return lambda _, inputs: seen[name].append(len(inputs[0]))

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model.eval()(pixel_values=torch.zeros(photos, 3, size, size))
    for hook in hooks:
        hook.remove()
    return seen
