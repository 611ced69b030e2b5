"""Creates, loads and saves image classifiers through the classes of transformers."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from ..data.quiet import quiet
from ..data.schema import Task
from ..errors import OneshuiError, UsageError, first_line
from ..seeding import seeded
from .outputs import find_head, logits_and_features

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TINY = "tiny"
TINY_SIZE, TINY_PATCH = 32, 8
HEAD_STD = 0.02  # of a new head's weights, if the config names none
PICKLE_FILES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "tf_model.h5")


def new_model(name: str, task: Task, image_size: int | None, seed: int) -> tuple[PreTrainedModel, Preprocess]:
    """Return a classifier to train: the backbone of a checkpoint, or a small untrained ViT, with a new head.

    Args:
        name: "tiny", a local checkpoint, or a Hub id.
        task: What is predicted.
        image_size: Side of the square input in pixels; that of the checkpoint if None.
        seed: For the randomly initialised weights.

    Raises:
        UsageError: The checkpoint does not exist or does not support the image size.
        OneshuiError: It contains pickled weights only, transformers has no image classifier of its kind, or its features cannot be found.
    """
    from transformers import AutoModelForImageClassification

    labels = {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {label: i for i, label in enumerate(task.label_names)},
        "problem_type": task.problem_type,
    }
    with quiet_transformers(), seeded(seed, "model"):
        if name == TINY:
            preprocess = Preprocess(image_size or TINY_SIZE)
            return AutoModelForImageClassification.from_config(_tiny_config(preprocess.size, labels)), preprocess
        config, preprocess = _pretrained_config(name, image_size, labels)
        model = _from_pretrained(name, config=config, ignore_mismatched_sizes=True)
        _initialize_head(model)
        model = adapt_to_image_size(model, preprocess.size)
        _require_features(model, preprocess.size)
        return model, preprocess


def _initialize_head(model: PreTrainedModel) -> None:
    """Initialise the head's weights from the current seed.

    Transformers keeps the checkpoint's head if it has the same number of labels. That head may have been trained on the forget
    identities, and an oracle must not inherit any information about them.
    """
    head = find_head(model)
    nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", None) or HEAD_STD)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _require_features(model: PreTrainedModel, size: int) -> None:
    """Run one black photo through the model, so that an unsupported model is rejected before training."""
    with _evaluation_mode(model):
        logits_and_features(model, torch.zeros(1, 3, size, size))


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


def _pretrained_config(name: str, image_size: int | None, labels: dict[str, Any]) -> tuple[PreTrainedConfig, Preprocess]:
    from transformers import AutoConfig, AutoImageProcessor

    reject_pickles(name)
    try:
        config = AutoConfig.from_pretrained(name, **labels)
    except (OSError, ValueError) as error:
        raise UsageError(f"Checkpoint '{name}' does not exist: {first_line(error)}") from None
    vision = _vision_config(config)
    size = image_size or _side(getattr(vision, "image_size", None)) or 224
    patch = _side(getattr(vision, "patch_size", None))
    if patch and size % patch:
        raise UsageError(f"--image-size {size} is not a multiple of {patch}, the patch size of {name}.")
    try:
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError):  # a checkpoint without a processor; ImageNet's statistics are the convention
        processor = None
    mean = getattr(processor, "image_mean", None) or IMAGENET_MEAN
    std = getattr(processor, "image_std", None) or IMAGENET_STD
    return config, Preprocess(size, tuple(mean), tuple(std))


def _vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the vision model: a part of the config in a vision-language model, otherwise the whole config."""
    return getattr(config, "vision_config", config)


def _side(value: Any) -> int | None:
    return value[0] if isinstance(value, list | tuple) else value


def _from_pretrained(name: str | Path, **settings: Any) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    from . import sharded  # noqa: F401  registers the architecture with transformers

    try:
        return AutoModelForImageClassification.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **settings)
    except SafetensorError as error:
        raise OneshuiError(f"The weights of {name} are damaged ({first_line(error)}); download or train them again.") from None
    except (OSError, ValueError) as error:
        raise OneshuiError(f"{name} cannot be loaded as an image classifier: {first_line(error)}") from None


def reject_pickles(name: str | Path) -> None:
    """Check that a local checkpoint contains safetensors.

    Raises:
        OneshuiError: It contains pickled weights only, or no weights.
    """
    folder = Path(name)
    if folder.is_file():
        raise OneshuiError(f"{name} is a file; name the folder of a checkpoint in safetensors. Pickled files are not read.")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickled = [file for file in PICKLE_FILES if (folder / file).exists()]
        what = f"only {pickled[0]}, a pickle, which can run code and is not read" if pickled else "no model.safetensors"
        raise OneshuiError(f"{name} contains {what}; save it in safetensors first.")


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
    if own is None:
        raise UsageError(f"This model does not accept photos of {size} pixels a side; name another --image-size.")
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
        with _evaluation_mode(model):
            model(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError):
        return False
    return True


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode without gradients inside the block, and restore the mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[PreTrainedModel, Preprocess, Task]:
    """Load a run's classifier, in evaluation mode, float32.

    Raises:
        OneshuiError: Its weights are missing, pickled or damaged.
    """
    reject_pickles(folder)
    with quiet_transformers():
        model = _from_pretrained(folder)
    names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    kind = "multi_label" if model.config.problem_type == "multi_label_classification" else "single_label"
    return model.eval().to(device), Preprocess.load(folder), Task(kind, names)  # type: ignore[arg-type]


def save_model(model: nn.Module, preprocess: Preprocess, folder: Path) -> None:
    """Write a checkpoint that `AutoModelForImageClassification` and `pipeline()` load."""
    with quiet_transformers():
        model.save_pretrained(folder)  # type: ignore[operator]
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors creates files that only the owner can read, unlike the run's other files
    preprocess.save(folder)


def quiet_transformers() -> contextlib.AbstractContextManager[None]:
    """Return a context in which transformers does not report that the head is new, and draws no progress bars."""
    from transformers.utils import logging as transformers_logging

    return quiet(transformers_logging, logging.ERROR)
