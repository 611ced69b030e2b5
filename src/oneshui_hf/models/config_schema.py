"""What a checkpoint's config.json may contain. It is checked before a model is built from it.

The bounds are far above those of real image classifiers, and low enough that a model of this size can be described without its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..data.preprocess import MAX_SIDE
from ..runs import CONFIG, read_object
from ..validation import Schema, Text, check_fields

MAX_LAYERS = 1000  # also heads and stages
MAX_WIDTH = 2**18  # of a layer
MAX_LABELS = 100_000
MAX_LIST = 1000  # entries of a list, other than labels
LAYER_WORDS = ("layers", "blocks", "depth", "heads", "stages", "groups")  # in the name of a field: how many there are of something

Label = Annotated[str, Field(max_length=200)]


def _whole(low: int, high: int) -> AfterValidator:
    """Accept whole numbers of a range, one or a list of them; None where a field is not used."""

    def check(value: Any) -> Any:
        if not _are_whole(value, low, high):
            raise ValueError(f"is not a whole number from {low} to {high}")
        return value

    return AfterValidator(check)


def _are_whole(value: Any, low: int, high: int) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= MAX_LIST and all(_are_whole(item, low, high) for item in value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)


Side = Annotated[Any, _whole(1, MAX_SIDE)]
Layers = Annotated[Any, _whole(1, MAX_LAYERS)]
Width = Annotated[Any, _whole(1, MAX_WIDTH)]


class Architecture(Schema):
    """The sizes of a model or of a part of one, under the names that transformers uses for most architectures."""

    model_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")] | None = None
    image_size: Side = None
    patch_size: Side = None
    window_size: Annotated[Any, _whole(0, MAX_SIDE)] = None
    num_channels: Annotated[Any, _whole(1, 64)] = None
    hidden_size: Width = None
    hidden_sizes: Width = None
    intermediate_size: Width = None
    embed_dim: Width = None
    embedding_size: Width = None
    feature_size: Width = None
    projection_dim: Width = None
    vocab_size: Annotated[Any, _whole(1, 2**24)] = None
    num_hidden_layers: Layers = None
    num_attention_heads: Layers = None
    num_heads: Layers = None
    depths: Layers = None
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] | list[Annotated[float, Field(gt=0, le=64)]] | None = None
    rank: Layers = None
    of: Layers = None
    shards: Annotated[Any, _whole(0, MAX_LAYERS)] = None
    layers: Annotated[Any, _whole(0, MAX_LAYERS)] = None
    bands: Layers = None
    shrinkage: Annotated[float, Field(gt=0, le=1e9)] | None = None
    temperature: Annotated[float, Field(gt=0, le=1e9)] | None = None
    mirrored: bool | None = None
    pooling: Literal["pooler", "first", "mean"] | None = None
    dtype: Text | None = None

    @model_validator(mode="after")
    def _require_fit(self) -> Architecture:
        heads, width = self.num_attention_heads, self.hidden_size
        if isinstance(heads, int) and isinstance(width, int) and width % heads:
            raise ValueError(f"has a hidden_size of {width}, which {heads} attention heads do not divide")
        for name, value in (self.model_extra or {}).items():
            if any(word in name for word in LAYER_WORDS) and isinstance(value, int | list) and not _are_numbers_up_to(value, MAX_LAYERS):
                raise ValueError(f"has a field '{name}' of more than {MAX_LAYERS}")
            if isinstance(value, list) and len(value) > MAX_LIST and name != "label_names":
                raise ValueError(f"has a list '{name}' of more than {MAX_LIST} entries")
        return self


def _are_numbers_up_to(value: Any, high: int) -> bool:
    if isinstance(value, list):
        return all(_are_numbers_up_to(item, high) for item in value)
    return not isinstance(value, int) or value <= high


class Classifier(Architecture):
    """The config of a whole image classifier."""

    model_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]
    architectures: list[Text] | None = None
    problem_type: Literal["multi_label_classification", "single_label_classification"] | None = None
    id2label: dict[str, Label] | None = None
    label2id: dict[str, Any] | None = None
    label_names: list[Label] | None = None  # of timm
    num_labels: Annotated[Any, _whole(1, MAX_LABELS)] = None
    num_classes: Annotated[Any, _whole(1, MAX_LABELS)] = None

    @model_validator(mode="after")
    def _require_numbered_labels(self) -> Classifier:
        if self.id2label is None:
            return self
        count = len(self.id2label)
        if not 0 < count <= MAX_LABELS or set(self.id2label) != set(map(str, range(count))):
            raise ValueError("has an id2label that does not number the labels from 0")
        if self.num_labels not in (None, count):
            raise ValueError(f"has {count} labels in id2label, and {self.num_labels} in num_labels")
        return self


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a run.

    Raises:
        OneshuiError: It is missing or damaged, or has a value that no image classifier has.
    """
    config = read_object(folder / CONFIG)
    check_config(config, folder / CONFIG)
    return config


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Check the content of a run's config.json.

    Raises:
        OneshuiError: A field has a value that no image classifier has.
    """
    check_fields(Classifier, config, file)
    check_architecture(config, file)


def check_architecture(config: Mapping[str, Any], file: Path) -> None:
    """Check the sizes in a config.json of any checkpoint, the labels of which are not used.

    Raises:
        OneshuiError: A field has a value that no image classifier has.
    """
    for name, part in [("", config), *_parts(config)]:
        check_fields(Architecture, part, file, within=name)


def _parts(config: Mapping[str, Any], within: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Return the objects in a config, with where they are: configs of parts, among others."""
    found = []
    for name, value in config.items():
        if isinstance(value, dict) and not (not within and name in ("id2label", "label2id")):
            place = f"{within}.{name}" if within else name
            found += [(place, value), *_parts(value, place)]
    return found
