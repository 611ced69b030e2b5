"""Creates classifiers to train: over the backbone of a checkpoint, at the requested image size, or a small untrained one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.preprocess import Preprocess
from ..data.schema import Task
from ..errors import OneshuiError, UsageError, first_line
from ..hub import hub_bars
from ..public_names import TINY
from ..reporting import SILENT, Reporter
from ..runs import CONFIG
from ..seeding import seeded
from .checks import MAIN, missing_package, reject_code, reject_pickles
from .config_schema import check_architecture
from .load import evaluation_mode, quiet_transformers
from .nested_config import nested_config, read_nested_config
from .outputs import find_head, logits_and_features
from .processors import Processing, read_processing
from .register import register
from .weights import damaged, listed, require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TINY_SIZE, TINY_PATCH = 32, 8
HEAD_STD = 0.02  # of a new head's weights, if the config names none
NOT_TRAINED_FURTHER = {"oneshui_sharded": "sharded model", "oneshui_closed_form": "model with a head in closed form"}


def new_model(
    name: str, task: Task, image_size: int | None, seed: int, revision: str | None = None, reporter: Reporter = SILENT
) -> tuple[PreTrainedModel, Preprocess]:
    """Return a classifier to train: the backbone of a checkpoint, or a small untrained ViT, with a new head.

    Args:
        name: "tiny", a local checkpoint, or a Hub id.
        task: What is predicted.
        image_size: Side of the square input in pixels; that of the checkpoint if None.
        seed: For the randomly initialised weights.
        revision: Branch, tag or commit of a model of the Hub; None is its main branch.
        reporter: Decides whether a download draws a bar.

    Raises:
        UsageError: The checkpoint does not exist or does not support the image size.
        OneshuiError: It contains pickled weights only, transformers has no image classifier of its kind, or its features cannot be found.
    """
    from transformers import AutoModelForImageClassification

    labels = {
        "num_labels": len(task.label_names),
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {label: i for i, label in enumerate(task.label_names)},
        "problem_type": task.problem_type,
    }
    with quiet_transformers(), hub_bars(reporter), seeded(seed, "model"):
        if name == TINY:
            preprocess = Preprocess(image_size or TINY_SIZE)
            return AutoModelForImageClassification.from_config(_tiny_config(preprocess.size, labels), trust_remote_code=False), preprocess
        config, preprocess, processing = _pretrained_config(name, image_size, labels, revision)
        fixed = image_size is not None
        if (headless := _headless_config(config, name)) is not None:
            return _headless_model(name, headless, preprocess, processing, labels, revision, fixed=fixed)
        model, info = _from_pretrained(name, config=config, revision=revision, ignore_mismatched_sizes=True, output_loading_info=True)
        _initialize_head(model, len(task.label_names))
        processing = dataclasses.replace(processing, notes=(*processing.notes, *_missing_notes(model, info, name)))
        preprocess = _follow_processor(model, preprocess, processing, name, fixed=fixed)
        model = adapt_to_image_size(model, preprocess.size)
        _require_features(model, preprocess.size)
        return model, preprocess


def _headless_config(config: PreTrainedConfig, name: str) -> PreTrainedConfig | None:
    """Return the config of the vision model, if transformers has no image classifier for this checkpoint; None if it has one.

    Raises:
        OneshuiError: There is no model that reads photos alone.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    from .backbone import headless_config, takes_photos_alone

    if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        kind = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        if takes_photos_alone(kind[0] if isinstance(kind, list | tuple) else kind):
            return None
    elif (headless := headless_config(config)) is not None:
        return headless
    raise OneshuiError(
        f"{name} cannot be loaded as an image classifier: transformers has no model of the kind '{config.model_type}' that reads "
        "photos alone."
    )


def _headless_model(
    name: str,
    config: PreTrainedConfig,
    preprocess: Preprocess,
    processing: Processing,
    labels: dict[str, Any],
    revision: str | None,
    *,
    fixed: bool,
) -> tuple[PreTrainedModel, Preprocess]:
    """Return a classifier over a vision model for which transformers has none, and the preprocessing."""
    from transformers import AutoModel

    from .backbone import add_head

    backbone, info = _from_pretrained(name, AutoModel, config=config, revision=revision, output_loading_info=True)
    preprocess = _follow_processor(backbone, preprocess, processing, name, fixed=fixed)
    backbone = adapt_to_image_size(backbone, preprocess.size)
    model = add_head(backbone, info["missing_keys"], preprocess.size, labels, name)
    _initialize_head(model, labels["num_labels"])
    _require_features(model, preprocess.size)
    return model, preprocess


def _missing_notes(model: PreTrainedModel, info: Mapping[str, Any], name: str) -> list[str]:
    """Return a note on the tensors other than the head that a checkpoint lacks: some, such as norms of a pooler, are not pre-trained.

    Raises:
        OneshuiError: Most of them are missing, one has another shape, or a value is not finite: it is not the checkpoint of this model.
    """
    head = next(key for key, module in model.named_modules() if module is find_head(model))
    missing, misshapen = (
        sorted(key for item in info[which] if not (key := item if isinstance(item, str) else item[0]).startswith(f"{head}."))
        for which in ("missing_keys", "mismatched_keys")
    )
    if misshapen or 2 * len(missing) > len(list(model.parameters())):
        wrong = misshapen or missing
        raise OneshuiError(
            f"{name} does not contain the weights that its config.json describes ({listed(wrong)}); use a complete checkpoint."
        )
    require_finite(name, model, "use another checkpoint")
    return [f"lacks {listed(missing)}; they start from initial values"] if missing else []


def _initialize_head(model: PreTrainedModel, labels: int) -> None:
    """Initialise the head's weights from the current seed.

    Transformers keeps the checkpoint's head if it has the same number of labels. That head may have been trained on the forget
    identities, and an oracle must not inherit any information about them.

    Raises:
        OneshuiError: The head does not have as many outputs as there are labels.
    """
    if model.config.num_labels != labels:
        raise OneshuiError(f"{type(model).__name__} was built for {model.config.num_labels} labels instead of {labels}; use another model.")
    head = find_head(model)
    nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", None) or HEAD_STD)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _require_features(model: PreTrainedModel, size: int) -> None:
    """Run one black photo through the model, so that an unsupported model is rejected before training.

    Raises:
        OneshuiError: It does not return logits, or its features cannot be found.
    """
    try:
        with evaluation_mode(model):
            logits_and_features(model, torch.zeros(1, 3, size, size))
    except OneshuiError:
        raise
    except Exception as error:  # an architecture may fail in any way, for example if the photo is smaller than its strides
        raise OneshuiError(
            f"{type(model).__name__} does not classify photos of {size}x{size} ({first_line(error)}); use another --image-size or model."
        ) from None


def _tiny_config(size: int, labels: dict[str, Any]) -> PreTrainedConfig:
    from transformers import ViTConfig

    if size % TINY_PATCH:
        raise UsageError(f"--image-size {size} is not a multiple of {TINY_PATCH}, the patch size of the tiny model.")
    return ViTConfig(
        image_size=size,
        patch_size=TINY_PATCH,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        **labels,
    )


def _pretrained_config(
    name: str, image_size: int | None, labels: dict[str, Any], revision: str | None
) -> tuple[PreTrainedConfig, Preprocess, Processing]:
    from transformers import AutoConfig

    register()
    reject_pickles(name)
    reject_code(name, revision=revision)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or MAIN, trust_remote_code=False, **labels)
        check_architecture(json.loads(config.to_json_string()), Path(name) / CONFIG)
    except (OSError, ValueError) as error:
        which = f"'{name}'" if revision is None else f"'{name}' with revision '{revision}'"
        raise UsageError(f"Checkpoint {which} does not exist: {first_line(error)}") from None
    except OneshuiError:
        raise
    except Exception as error:  # transformers does not check all contents of the file
        raise OneshuiError(f"{Path(name) / CONFIG} does not describe a model: {first_line(error)}") from None
    if config.model_type in NOT_TRAINED_FURTHER:
        kind = NOT_TRAINED_FURTHER[config.model_type]
        raise UsageError(f"{name} is a {kind}, which is not trained further; name the checkpoint that it was trained from.")
    config.architectures = config.architectures or []  # transformers iterates over them where a kind of model has several classifiers
    vision = _vision_config(config)
    size = image_size or _side(getattr(vision, "image_size", None)) or _take_timm_side(config) or 224
    patch = _side(getattr(vision, "patch_size", None))
    if patch and size % patch:
        raise UsageError(f"--image-size {size} is not a multiple of {patch}, the patch size of {name}.")
    processing = read_processing(name, revision)
    return config, Preprocess(size, processing.mean, processing.std, processing.bgr), processing


def _follow_processor(model: PreTrainedModel, preprocess: Preprocess, processing: Processing, name: str, *, fixed: bool) -> Preprocess:
    """Return the preprocessing with notes, and with the side of the checkpoint's own processor, unless `fixed` or refused by the model."""
    side, size, notes = processing.side, preprocess.size, list(processing.notes)
    if side and side != size and not fixed:
        patch = _side(getattr(_vision_config(model.config), "patch_size", None)) or 1
        if side % patch == 0 and _accepts(model, side):
            size = side
        else:
            notes.append(f"has an image processor for {side}x{side} and a model for {{side}}x{{side}}; {{side}}x{{side}} is used")
    return dataclasses.replace(preprocess, size=size, notes=tuple(f"{name} {note.format(side=size)}." for note in notes))


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the vision model: a part of the config of a vision-language or a wrapped model, otherwise the whole config."""
    nested = getattr(config, "backbone", None)
    return read_nested_config(nested) if isinstance(nested, dict) and "model_type" in nested else getattr(config, "vision_config", config)


def _take_timm_side(config: PreTrainedConfig) -> int | None:
    """Return the side of a timm checkpoint's photos, and remove timm's own settings from its config; None for others.

    If they were saved with a run, transformers would read the labels and the preprocessing of the original checkpoint from them.
    """
    if config.model_type != "timm_wrapper":
        return None
    own = getattr(config, "pretrained_cfg", None) or {}
    for key in ("pretrained_cfg", "label_names", "label_descriptions"):
        if hasattr(config, key):
            delattr(config, key)
    return (own.get("input_size") or [None])[-1]


def _side(value: Any) -> int | None:
    return value[0] if isinstance(value, list | tuple) else value


def _from_pretrained(name: str | Path, kind: Any = None, *, revision: str | None = None, **settings: Any) -> Any:
    """Load a checkpoint with an Auto class of transformers, that of image classifiers by default.

    Raises:
        OneshuiError: It cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    register()
    kind = kind or AutoModelForImageClassification
    try:
        return kind.from_pretrained(
            name, revision=revision or MAIN, use_safetensors=True, dtype=torch.float32, trust_remote_code=False, **settings
        )
    except SafetensorError as error:
        raise damaged(name, error) from None
    except ImportError as error:  # a package that only some architectures need
        raise OneshuiError(missing_package(name, error)) from None
    except Exception as error:  # an architecture may fail in any way
        raise OneshuiError(f"{name} cannot be loaded as an image classifier: {first_line(error)}") from None


def adapt_to_image_size(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a model whose position embeddings and config fit the image size.

    ViT-like models reject any size other than that of their config. Interpolating once here lets all later users, including
    `pipeline()`, call the model as usual. Models that accept any size (DINOv2, convolutional ones) are returned unchanged.

    Raises:
        UsageError: The model supports its own size only.
    """
    own = _side(getattr(_vision_config(model.config), "image_size", None))
    if own == size or _accepts(model, size):
        return model
    if model.config.model_type == "oneshui_backbone":
        model.backbone = adapt_to_image_size(model.backbone, size)
        model.config.backbone = nested_config(model.backbone.config)
        return model
    if own is None:
        raise UsageError(f"This model does not accept photos of {size} pixels a side; name another --image-size, or another --model.")
    name, embeddings = next(
        ((n, m) for n, m in model.named_modules() if hasattr(m, "interpolate_pos_encoding") and _has_positions(m)),
        ("", None),
    )
    vision = _vision_config(model.config)
    patch = _side(getattr(vision, "patch_size", None))
    if embeddings is None or patch is None:
        raise UsageError(f"This model accepts {own} pixels a side only; omit --image-size.")
    positions = embeddings.position_embeddings
    grid, old_grid = (size // patch) ** 2, (own // patch) ** 2
    tokens = torch.zeros(1, grid + positions.shape[1] - old_grid, positions.shape[2])
    with torch.no_grad():
        fitted = embeddings.interpolate_pos_encoding(tokens, size, size)
    state = model.state_dict()
    state[f"{name}.position_embeddings"] = fitted.clone()
    vision.image_size = size
    resized = type(model)(model.config)
    resized.load_state_dict(state)
    return resized


def _has_positions(module: nn.Module) -> bool:
    return isinstance(getattr(module, "position_embeddings", None), torch.Tensor)


def _accepts(model: PreTrainedModel, size: int) -> bool:
    try:
        with evaluation_mode(model):
            model(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError, AssertionError):
        return False
    return True
