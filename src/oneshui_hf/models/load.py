"""Making, loading and saving image classifiers, all through transformers' own classes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from ..data.schema import Task
from ..errors import OneshuiError, UsageError
from ..seeding import seeded
from .outputs import find_head, logits_and_features

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TINY = "tiny"
TINY_SIZE, TINY_PATCH = 32, 8
HEAD_STD = 0.02  # of a new head's weights, where the config names none
PICKLES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "tf_model.h5")


def new_model(name: str, task: Task, image_size: int | None, seed: int) -> tuple[PreTrainedModel, Preprocess]:
    """Make a classifier to be trained: a checkpoint's backbone, or a small ViT from scratch, under a new head.

    Args:
        name: "tiny", a local checkpoint, or a Hub id.
        task: What is predicted.
        image_size: Side of the square input in pixels; the checkpoint's own where None.
        seed: For the weights that are drawn.

    Raises:
        UsageError: There is no such checkpoint, or it cannot take that size.
        OneshuiError: It holds pickled weights only, transformers has no image classifier of its kind, or its features cannot be found.
    """
    from transformers import AutoModelForImageClassification

    labels = {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {label: i for i, label in enumerate(task.label_names)},
        "problem_type": task.problem_type,
    }
    with _quiet(), seeded(seed, "model"):
        if name == TINY:
            preprocess = Preprocess(image_size or TINY_SIZE)
            return AutoModelForImageClassification.from_config(_tiny(preprocess.size, labels)), preprocess
        config, preprocess = _pretrained(name, image_size, labels)
        model = _from_pretrained(name, config=config, ignore_mismatched_sizes=True)
        _draw_head(model)
        model = fit_image_size(model, preprocess.size)
        _require_features(model, preprocess.size)
        return model, preprocess


def _draw_head(model: PreTrainedModel) -> None:
    """Draw the head's weights, from the current seed.

    Transformers keeps the checkpoint's head where it has as many labels. It may have been trained on these very people, and an oracle
    must inherit nothing of them.
    """
    head = find_head(model)
    nn.init.normal_(head.weight, std=getattr(model.config, "initializer_range", None) or HEAD_STD)
    if head.bias is not None:
        nn.init.zeros_(head.bias)


def _require_features(model: PreTrainedModel, size: int) -> None:
    """Run one black photo through the model, so that one that methods could not work with is refused before it is trained."""
    with _evaluating(model):
        logits_and_features(model, torch.zeros(1, 3, size, size))


def _tiny(size: int, labels: dict[str, Any]) -> PreTrainedConfig:
    from transformers import ViTConfig

    if size % TINY_PATCH:
        raise UsageError(f"--image-size {size} is no multiple of {TINY_PATCH}, the patch size of the tiny model.")
    return ViTConfig(
        image_size=size,
        patch_size=TINY_PATCH,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        **labels,
    )


def _pretrained(name: str, image_size: int | None, labels: dict[str, Any]) -> tuple[PreTrainedConfig, Preprocess]:
    from transformers import AutoConfig, AutoImageProcessor

    refuse_pickles(name)
    try:
        config = AutoConfig.from_pretrained(name, **labels)
    except (OSError, ValueError) as error:
        raise UsageError(f"There is no checkpoint '{name}': {_first_line(error)}") from None
    vision = _vision(config)
    size = image_size or _side(getattr(vision, "image_size", None)) or 224
    patch = _side(getattr(vision, "patch_size", None))
    if patch and size % patch:
        raise UsageError(f"--image-size {size} is no multiple of {patch}, the patch size of {name}.")
    try:
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError):  # a checkpoint without a processor: ImageNet's statistics are the convention
        processor = None
    mean = getattr(processor, "image_mean", None) or IMAGENET_MEAN
    std = getattr(processor, "image_std", None) or IMAGENET_STD
    return config, Preprocess(size, tuple(mean), tuple(std))


def _vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config that speaks of images: its own part in a model of images and text, else the whole."""
    return getattr(config, "vision_config", config)


def _side(value: Any) -> int | None:
    return value[0] if isinstance(value, list | tuple) else value


def _from_pretrained(name: str | Path, **settings: Any) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForImageClassification

    from . import sharded  # noqa: F401  tells transformers of the architecture

    try:
        return AutoModelForImageClassification.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **settings)
    except SafetensorError as error:
        raise OneshuiError(f"The weights of {name} are damaged ({_first_line(error)}); fetch or train them again.") from None
    except (OSError, ValueError) as error:
        raise OneshuiError(f"{name} cannot be loaded as an image classifier: {_first_line(error)}") from None


def refuse_pickles(name: str | Path) -> None:
    """Check that a local checkpoint is no pickle.

    Raises:
        OneshuiError: It is.
    """
    folder = Path(name)
    if folder.is_file():
        raise OneshuiError(f"{name} is a file; name the folder of a checkpoint in safetensors. Pickled files are not read.")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickled = [file for file in PICKLES if (folder / file).exists()]
        what = f"only {pickled[0]}, a pickle, which can run code and is not read" if pickled else "no model.safetensors"
        raise OneshuiError(f"{name} holds {what}; save it in safetensors first.")


def fit_image_size(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Return a model whose position embeddings and config fit the image size.

    ViT-like models refuse another size than their config's; interpolating once here lets every later user, `pipeline()` included,
    call the model as usual. Models that adapt by themselves (DINOv2, convolutional ones) are returned as they are.

    Raises:
        UsageError: The model takes its own size only.
    """
    own = _side(getattr(_vision(model.config), "image_size", None))
    if own == size or _accepts(model, size):
        return model
    if own is None:
        raise UsageError(f"This model takes no photos of {size} pixels a side; name another --image-size.")
    name, embeddings = next(
        ((n, m) for n, m in model.named_modules() if hasattr(m, "interpolate_pos_encoding") and _has_positions(m)),
        ("", None),
    )
    vision = _vision(model.config)
    patch = _side(getattr(vision, "patch_size", None))
    if embeddings is None or patch is None:
        raise UsageError(f"This model takes {own} pixels a side only; leave --image-size out.")
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
        with _evaluating(model):
            model(pixel_values=torch.zeros(1, 3, size, size))
    except (ValueError, RuntimeError):
        return False
    return True


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and back into the mode it was in."""
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
    refuse_pickles(folder)
    with _quiet():
        model = _from_pretrained(folder)
    names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    kind = "multi_label" if model.config.problem_type == "multi_label_classification" else "single_label"
    return model.eval().to(device), Preprocess.load(folder), Task(kind, names)  # type: ignore[arg-type]


def save_model(model: nn.Module, preprocess: Preprocess, folder: Path) -> None:
    """Write a checkpoint that `AutoModelForImageClassification` and `pipeline()` load."""
    with _quiet():
        model.save_pretrained(folder)  # type: ignore[operator]
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for its owner alone; a run is read by whoever may read its other files
    preprocess.save(folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling that the head is new, and from drawing progress bars."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
