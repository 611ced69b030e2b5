"""Loads and saves the classifier of a run: its own config, weights and preprocessing, all of them checked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..data.preprocess import Preprocess
from ..data.quiet import quiet
from ..data.schema import Task
from ..errors import OneshuiError, first_line
from ..imports import heavy_imports
from ..runs import CONFIG, PREPROCESSOR, RECORD, Run
from .checks import missing_package, reject_code, reject_pickles
from .config_schema import read_config
from .register import register
from .weights import load_tensors, require_all_weights, require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def load_model(
    folder: Path, device: torch.device | str = "cpu", preprocess: Preprocess | None = None
) -> tuple[PreTrainedModel, Preprocess, Task]:
    """Load a run's classifier, in evaluation mode, float32.

    Its files may come from the Hub. No content of them makes this run code, read or request anything else, or use much more memory than
    the files have.

    Args:
        folder: The run, or another checkpoint.
        device: Where its weights are put.
        preprocess: The preprocessing of another checkpoint. That of the run by default.

    Raises:
        OneshuiError: Its weights are missing, pickled, damaged or not those of its config, one of its configs is damaged, is not the one of
            its record or names code, or it needs a package that is not installed.
    """
    run = Run.open(folder).require_settings() if (folder / RECORD).exists() else None
    reject_pickles(folder)
    reject_code(folder)
    preprocess = preprocess or Preprocess.load(folder)
    with quiet_transformers():
        with heavy_imports():  # of transformers, and of this architecture
            config = _config(folder)
            skeleton = _build_skeleton(folder, config)
        runs = _accepts_photo(folder, skeleton, preprocess.size)
        tensors = load_tensors(folder, skeleton)
        model, info = _load_tensors_into(type(skeleton), config, tensors, folder)
        require_all_weights(folder, info, tensors, model)
        require_finite(folder, model)
        if not runs:
            _accepts_photo(folder, model.eval(), preprocess.size)
    names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    kind = "multi_label" if model.config.problem_type == "multi_label_classification" else "single_label"
    if run is not None and run.record.dataset.get("labels") not in (None, list(names)):
        raise OneshuiError(f"The labels in {folder / CONFIG} are not those of its {RECORD}: one of them was changed. Restore it.")
    return model.eval().to(device), preprocess, Task(kind, names)  # type: ignore[arg-type]


def _config(folder: Path) -> PreTrainedConfig:
    """Return the config of a run.

    Raises:
        OneshuiError: It has a value that no image classifier has.
    """
    from transformers import CONFIG_MAPPING

    register()
    values = read_config(folder)
    with _one_sentence(folder / CONFIG):
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
        config.architectures = config.architectures or []  # transformers iterates over them where a kind has several classifiers
        return config


def _build_skeleton(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model that a config describes, without memory for its weights.

    Raises:
        OneshuiError: There is no such model.
    """
    from transformers import AutoModelForImageClassification

    with _one_sentence(folder / CONFIG), torch.device("meta"):
        return AutoModelForImageClassification.from_config(config, trust_remote_code=False).eval()


def _accepts_photo(folder: Path, model: PreTrainedModel, size: int) -> bool:
    """Check that a model returns one logit per label for a photo; return False if it cannot run without its weights.

    Raises:
        OneshuiError: It does not.
    """
    with _one_sentence(folder / CONFIG), torch.no_grad():
        try:
            logits = model(pixel_values=torch.zeros(1, 3, size, size, device=model.device)).logits
        except RuntimeError as error:
            if model.device.type == "meta" and "meta" in str(error):  # an operation that depends on values
                return False
            raise
        if tuple(logits.shape) != (1, model.config.num_labels):
            raise ValueError(f"it returns logits of the shape {tuple(logits.shape)} for one photo")
    return True


@contextlib.contextmanager
def _one_sentence(file: Path) -> Iterator[None]:
    """Turn any error that an architecture raises while it is built from a config into one sentence.

    Raises:
        OneshuiError: The architecture raised an error.
    """
    try:
        yield
    except OneshuiError:
        raise
    except ImportError as error:  # a package that only some architectures need
        raise OneshuiError(missing_package(file.parent, error)) from None
    except KeyError as error:
        raise OneshuiError(f"{file} does not describe an image classifier that transformers has ({first_line(error)}).") from None
    except Exception as error:  # an architecture may fail in any way
        raise OneshuiError(f"{file} does not describe an image classifier that can be built: {first_line(error)}") from None


def _load_tensors_into(kind: type[PreTrainedModel], config: PreTrainedConfig, tensors: dict[str, torch.Tensor], folder: Path) -> Any:
    """Return a model with these weights, and what transformers reports about their names and shapes.

    The tensors and not the folder are given to transformers, which would look for adapters and other files in it.
    """
    with _one_sentence(folder / CONFIG):
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused by `require_all_weights`, which names them
            output_loading_info=True,
            trust_remote_code=False,
        )


def save_model(model: nn.Module, preprocess: Preprocess, folder: Path) -> None:
    """Write a checkpoint that `AutoModelForImageClassification` and `pipeline()` load.

    Raises:
        OneshuiError: Weights are NaN or infinite.
    """
    require_finite("the new model", model, "nothing was written; use a lower learning rate or other options")
    with quiet_transformers():
        model.save_pretrained(folder)  # type: ignore[operator]
    preprocess.save(folder)
    for file in folder.glob("*.safetensors"):  # safetensors creates files that only the owner can read; here the umask decides
        file.chmod((folder / PREPROCESSOR).stat().st_mode)


def quiet_transformers() -> contextlib.AbstractContextManager[None]:
    """Return a context in which transformers does not report that the head is new, and draws no progress bars."""
    from transformers.utils import logging as transformers_logging

    return quiet(transformers_logging, logging.ERROR)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode without gradients inside the block, and restore the mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
