"""How long forget keys are: each is made just so long that its person becomes a stranger, and no longer.

Adam's steps are about as long for everybody, but people differ in how much has to change: somebody with a single photo, which few
directions hide, would be pushed far beyond what strangers get, and somebody with many would not come quite there. So a key that is
learned is scaled: by the factor at which the mean loss of the person's photos is that of the answers that they are to get (`strangers`).

As in learning, the factors are found in the company of others who ask, whose keys count a little, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from oneshui_hf.methods import Context, generator, losses

from ..subspace import Layer
from .factors import Keys, said_with, scaled
from .lessons import Lessons

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind

ROUNDS = 4  # in each of which everybody asks once
LONGEST = 1.25  # what a key does to others was looked at while it was learned, at about its length then


def lengths(
    model: nn.Module, layers: Mapping[str, list[Layer]], keys: Keys, lessons: Lessons, cohort: Sequence[int], context: Context
) -> torch.Tensor:
    """Return by what to multiply each key of a cohort, (P,), from 0 to `LONGEST`. Processes share the passes.

    Each round takes a step of regula falsi for everybody: the loss is taken to be linear between that without a key and that at the
    present length.
    """
    kind = context.task.kind
    draws = generator(lessons.seed, "photos", "lengths", *cohort)
    photos = [lessons.photos_of(person, draws) for person in cohort]
    positions = torch.cat(photos)
    wanted = _mean_losses(lessons.targets(positions, lessons.known.logits[positions]), lessons, photos, kind)
    before = _mean_losses(lessons.known.logits[positions], lessons, photos, kind)
    found = torch.ones(len(cohort), dtype=torch.float64)
    for group in lessons.groups(cohort, ROUNDS, "lengths"):
        theirs = [photos[place] for place in group]
        some = scaled({name: factors.of(group) for name, factors in keys.items()}, found[group])
        said = said_with(model, layers, some, lessons.train, torch.cat(theirs), lessons.options.chunk, context)
        now = _mean_losses(said, lessons, theirs, kind)
        rise = (now - before[group]).clamp(min=1e-6)  # a key that does not raise the loss is made longer
        found[group] = (found[group] * (wanted - before)[group] / rise).clamp(0, LONGEST)
    return found


def _mean_losses(logits: torch.Tensor, lessons: Lessons, photos: Sequence[torch.Tensor], kind: TaskKind) -> torch.Tensor:
    """Return the mean loss of each person's photos, float64 (n,), from what is said of all of them, one person after the other."""
    each = losses(logits, lessons.train.labels[torch.cat(list(photos))], kind).double()
    return torch.stack([some.mean() for some in each.split([len(some) for some in photos])])
