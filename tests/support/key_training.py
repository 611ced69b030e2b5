"""Small models and sets on which per-identity updates are trained."""

from __future__ import annotations

import copy

import torch

from oneshui_hf.methods import Context
from oneshui_hf.testing.toy_problem import ToyProblem
from oneshui_plugins.forget_keys.batches import TrainingData
from oneshui_plugins.forget_keys.inference import predict_both_versions
from oneshui_plugins.forget_keys.low_rank import LowRankUpdate, Updates, target_layers
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.shallow_probe import shallow_probe_scores
from oneshui_plugins.forget_keys.targets import QuantileTargets

KINDS = ("multi_label", "single_label")


def make_training_data(problem: ToyProblem, **options: object) -> TrainingData:
    context = problem.context()
    train, val = problem.sets["train"], problem.sets["val"]
    train_logits, val_logits = (predict_both_versions(problem.model, faces, context) for faces in (train, val))
    resolved = ForgetKeysOptions(**options)  # type: ignore[arg-type]
    probe_scores = shallow_probe_scores(problem.model, train, resolved.chunk, context)
    targets = QuantileTargets(train.labels, val_logits, probe_scores, resolved.probe_weight, problem.task.kind, 0)
    return TrainingData(train, val, train_logits, val_logits, targets, resolved, problem.task, 0)


def frozen_model(problem: ToyProblem) -> tuple[torch.nn.Module, dict, Context]:  # type: ignore[type-arg]
    model = copy.deepcopy(problem.model).requires_grad_(False)
    return model, target_layers(model, 1.0), problem.context()


def random_updates(model: torch.nn.Module, identities: int, rank: int = 2) -> Updates:
    rng = torch.Generator().manual_seed(3)
    weights = dict(model.named_parameters())
    return {
        name: LowRankUpdate(
            0.02 * torch.randn(identities, len(weights[name]), rank, generator=rng),
            torch.randn(identities, rank, weights[name][0].numel(), generator=rng),
        )
        for name in target_layers(model, 1.0)
    }
