"""Small models and sets on which per-identity updates are trained."""

from __future__ import annotations

import copy

import torch

from oneshui_hf.methods import Context
from oneshui_hf.testing.toy_problem import World
from oneshui_plugins.forget_keys.batches import Lessons
from oneshui_plugins.forget_keys.inference import as_it_is_and_mirrored
from oneshui_plugins.forget_keys.low_rank import Factors, Keys, keyed
from oneshui_plugins.forget_keys.options import ForgetKeysOptions
from oneshui_plugins.forget_keys.shallow_probe import guesses

KINDS = ("multi_label", "single_label")


def lessons(w: World, **options: object) -> Lessons:
    context = w.context()
    train, val = w.sets["train"], w.sets["val"]
    known, strange = (as_it_is_and_mirrored(w.model, faces, context) for faces in (train, val))
    chosen = ForgetKeysOptions(**options)  # type: ignore[arg-type]
    return Lessons(train, val, known, strange, guesses(w.model, train, chosen.chunk, context), chosen, w.task, 0)


def learner(w: World) -> tuple[torch.nn.Module, dict, Context]:  # type: ignore[type-arg]
    model = copy.deepcopy(w.model).requires_grad_(False)
    return model, keyed(model, 1.0), w.context()


def drawn(model: torch.nn.Module, people: int, rank: int = 2) -> Keys:
    draws = torch.Generator().manual_seed(3)
    weights = dict(model.named_parameters())
    return {
        name: Factors(
            0.02 * torch.randn(people, len(weights[name]), rank, generator=draws),
            torch.randn(people, rank, weights[name][0].numel(), generator=draws),
        )
        for name in keyed(model, 1.0)
    }
