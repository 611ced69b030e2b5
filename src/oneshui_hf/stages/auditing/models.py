"""Models of any origin for an audit: a run, another folder of transformers, a repository of the Hub. Only safetensors and JSON are read."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...data.preprocess import Preprocess
from ...data.schema import Task
from ...errors import OneshuiError, UsageError
from ...hub import hub_errors
from ...models.checks import reject_code, reject_pickles
from ...models.config_schema import read_config
from ...models.load import load_model
from ...models.processors import read_processing
from ...reporting import Reporter
from ...runs import CONFIG, PREPROCESSOR, RECORD, Run, hash_weights
from ..publishing.model import SHARD_INDEX, is_published_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_SIDE = 224  # of the input, where neither the image processor nor the config states one


@dataclass(frozen=True)
class AuditedModel:
    """A model with what its predictions depend on.

    Attributes:
        name: The folder or Hub id that the user named.
        model: The classifier, in evaluation mode.
        preprocess: Maps pixels to its input.
        task: What it predicts.
        weights: The SHA-256 of its weights.
    """

    name: str
    model: PreTrainedModel
    preprocess: Preprocess
    task: Task
    weights: str

    def state(self) -> dict[str, torch.Tensor]:
        """Return its weights by name."""
        return self.model.state_dict()


def open_model(name: str, device: torch.device, reporter: Reporter) -> AuditedModel:
    """Load a model from a folder, or from the Hub by way of a temporary folder.

    Raises:
        OneshuiError: It is no image classifier with weights in safetensors, it brings code, it is damaged, or the Hub cannot be reached.
    """
    if Path(name).exists():
        return _open_folder(Path(name), name, device, reporter)
    with tempfile.TemporaryDirectory(prefix="oneshui-audit-") as folder:
        _download(name, Path(folder), reporter)
        try:
            return _open_folder(Path(folder), name, device, reporter)
        except OneshuiError as error:
            raise OneshuiError(str(error).replace(folder, name)) from None


def _download(repo_id: str, folder: Path, reporter: Reporter) -> None:
    """Download the config, the preprocessing and the safetensors files of a repository, by their exact names, and nothing else."""
    reporter.info(f"Fetching {repo_id}.")
    with hub_errors(repo_id, None, reporter):
        from huggingface_hub import HfApi, snapshot_download

        found = HfApi(library_name="oneshui").model_info(repo_id)
        names = [file.rfilename for file in found.siblings or () if _is_read(file.rfilename)]
        if names:
            snapshot_download(repo_id, revision=found.sha, local_dir=folder, allow_patterns=names)


def _is_read(file: str) -> bool:
    is_model = file in (CONFIG, PREPROCESSOR, SHARD_INDEX) or file.endswith(".safetensors")
    return is_model and "/" not in file and is_published_file(file)


def _open_folder(folder: Path, name: str, device: torch.device, reporter: Reporter) -> AuditedModel:
    reject_pickles(folder)
    reject_code(folder)
    if (folder / RECORD).is_file():
        Run.open(folder).require_complete()
        model, preprocess, task = load_model(folder, device)
    else:
        model, preprocess, task = load_model(folder, device, _measured_preprocess(folder, name, reporter))
    return AuditedModel(name, model, preprocess, task, hash_weights(folder))


def _measured_preprocess(folder: Path, name: str, reporter: Reporter) -> Preprocess:
    """Return the preprocessing of a folder that another tool may have written, with notes on what cannot be followed."""
    config, processing = read_config(folder), read_processing(str(folder))
    own = config.get("image_size")
    side = processing.side or (own[0] if isinstance(own, list) else own) or DEFAULT_SIDE
    for note in processing.notes:
        reporter.note(f"{name} {note.format(side=side)}.")
    return Preprocess(side, processing.mean, processing.std, processing.bgr)


def require_comparable(model: AuditedModel, original: AuditedModel) -> None:
    """Check that the difference of two models can be computed, and that there is one.

    Raises:
        UsageError: They differ in more than their weights, or not at all.
    """
    one, other = model.name, original.name
    kinds = type(model.model).__name__, type(original.model).__name__
    if kinds[0] != kinds[1]:
        raise UsageError(f"{one} is a {kinds[0]} and {other} a {kinds[1]}, so they cannot be compared; name two versions of one model.")
    weights, own = model.state(), original.state()
    if {name: tensor.shape for name, tensor in weights.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise UsageError(
            f"The weights of {one} and {other} have different shapes, so they cannot be compared; name two versions of one model."
        )
    if model.task != original.task:
        raise UsageError(f"{one} and {other} predict different labels, so they cannot be compared; name two versions of one model.")
    if model.preprocess != original.preprocess:
        raise UsageError(f"{one} and {other} prepare photos differently; give both the same {PREPROCESSOR}.")
    if all(torch.equal(weights[name], own[name]) for name in own):
        raise UsageError(f"{one} and {other} have the same weights, so there is no difference to audit; name two different models.")
