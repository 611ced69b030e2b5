"""Checks of a checkpoint before its model is built: no pickles, no code or data of other places, and the packages that it needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import OneshuiError, first_line
from ..runs import read_object

MAIN = "main"  # the revision of a model of the Hub if none is named
PICKLE_FILES = ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "tf_model.h5")
CONFIGS = (  # all of which transformers may read
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "generation_config.json", "adapter_config.json"),
)
# Fields by which transformers, or a package that it calls, runs code, compiles kernels, or reads other files or repositories.
CODE_FIELDS = frozenset(("auto_map", "custom_pipelines", "custom_code", "custom_generate"))
FOREIGN_FIELDS = frozenset(
    (
        *("quantization_config", "compression_config", "fusion_config", "distributed_config"),
        *("kernel_config", "use_kernels", "allow_all_kernels"),
        *("transformers_weights", "configuration_files", "base_model_name_or_path", "gguf_file", "checkpoint_path"),
        *("use_pretrained_backbone", "pretrained_backbone", "pretrained_cfg_overlay"),
    )
)
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")  # others than these may be the name of a repository
BUILT_IN = (None, "eager", "sdpa")
# timm builds a model of its own list of architectures by this name, and reads others after "hf-hub:", "local-dir:" or from a path.
TIMM_NAMES, TIMM_NAME = ("architecture", "backbone"), re.compile(r"[\w.-]+")
TIMM_ARGUMENTS = ("model_args", "backbone_kwargs")


def missing_package(name: str | Path, error: ImportError) -> str:
    """Return a sentence on the package that a checkpoint's architecture needs."""
    from transformers.utils import is_timm_available

    if "timm" in str(error) and not is_timm_available():
        return f'{name} is a model of timm, which is not installed; run: pip install "oneshui-hf[timm]"'
    return f"{name} needs a package that is not installed: {first_line(error)}"


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


def reject_code(source: str | Path, name: str | None = None, *, revision: str | None = None) -> None:
    """Check that a checkpoint does not bring its own Python code, which is never run, or name code, kernels or weights elsewhere.

    Args:
        source: Its folder, or its id on the Hub.
        name: What messages call it; the source by default.
        revision: Of a source on the Hub; None is its main branch.

    Raises:
        OneshuiError: One of its configs does.
    """
    name = name or str(source)
    configs = _local_configs(Path(source)) if Path(source).is_dir() else _published_configs(str(source), revision or MAIN)
    for file, config in configs:
        for field, value in _fields(config):
            if field in CODE_FIELDS and value is not None:
                raise OneshuiError(f"{name} brings its own Python code ({field} in {file}), which is not run; use another model.")
            if _leads_elsewhere(field, value):
                raise OneshuiError(
                    f"{name} needs code, kernels or files from elsewhere ({field} in {file}), which are not loaded; use another model."
                )


def _local_configs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in CONFIGS:
        if (folder / file).exists() or (folder / file).is_symlink():
            yield file, read_object(folder / file)


def _published_configs(name: str, revision: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from transformers import PreTrainedConfig, ViTImageProcessorPil

    readers = {"config.json": PreTrainedConfig.get_config_dict, "preprocessor_config.json": ViTImageProcessorPil.get_image_processor_dict}
    for file, read in readers.items():
        try:
            config = read(name, revision=revision)[0]
        except (OSError, ValueError, TypeError, AttributeError, LookupError):  # there is none, which is reported where it is read
            continue
        if isinstance(config, dict):
            yield file, config


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all fields of a JSON value, at any depth."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _fields(item)


def _leads_elsewhere(field: str, value: Any) -> bool:
    if field.removesuffix("_internal").lstrip("_") in IMPLEMENTATIONS:
        return any(item not in BUILT_IN for item in (value.values() if isinstance(value, dict) else [value]))
    if field in TIMM_NAMES:
        return isinstance(value, str) and not TIMM_NAME.fullmatch(value)
    if field in TIMM_ARGUMENTS:
        return any(isinstance(text, str) and not TIMM_NAME.fullmatch(text) for _, text in _fields(value))
    return field in FOREIGN_FIELDS and value not in (None, False)
