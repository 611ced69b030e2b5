"""The config of a backbone as a part of the config of a whole model, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Keys that the config of the whole model contains, or that are not needed.
DROPPED_KEYS = ("id2label", "label2id", "problem_type", "dtype", "torch_dtype", "architectures", "transformers_version", "_name_or_path")


def nested_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the config of a backbone as a JSON object."""
    return {key: value for key, value in config.to_dict().items() if key not in DROPPED_KEYS}


def read_nested_config(nested: dict[str, Any]) -> PreTrainedConfig:
    """Return the config that `nested_config` described."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**nested)
    config.architectures = config.architectures or []  # transformers iterates over them where a kind of model has several classifiers
    return config
