"""How long forget keys are: each is made just so long that its person becomes a stranger, and no longer.

Adam's steps are about as long for everybody, but people differ in how much has to change: somebody with a single photo, which few
directions hide, would be pushed far beyond what strangers get, and somebody with many would not come quite there. So a key that is
learned is scaled: by the factor at which the mean loss of the person's photos is that of the answers that they are to get (`strangers`).
As in learning, it is found in the company of others who ask, whose keys count a little, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from oneshui_hf.methods import Context, generator, losses

from ..common.input_covariance import Layer
from .batches import Lessons
from .inference import said_with
from .low_rank import Keys, scaled, some_of

ROUNDS = 4  # in each of which everybody asks once
SHORTEST = 0.05  # whoever asks is not answered by doing nothing, also where the model knows no more of them than of a stranger
LONGEST = 1.25  # what a key does to others was looked at while it was learned, at about its length then
POWERS = (0.5, 4.0)  # what others who ask add to a rise must not be taken for what a change of length does
TINY = 1e-6  # of a rise in nats, and of a ratio: what is raised to a power has to be positive


def lengths(
    model: nn.Module, layers: Mapping[str, list[Layer]], keys: Keys, lessons: Lessons, cohort: Sequence[int], context: Context
) -> torch.Tensor:
    """Return by what to multiply each key of a cohort, (P,), from `SHORTEST` to `LONGEST`. Processes share the passes.

    The rise of a loss over that without a key is taken to grow like a power of the length: in the first round by its first, later by the
    one that goes through what was met at the last two lengths. (A step that took every rise to be linear would swing about the lengths of
    those whose loss is steep.)
    """
    kind, labels = context.task.kind, lessons.train.labels
    draws = generator(lessons.seed, "photos", "lengths", *cohort)
    photos = [lessons.photos_of(person, draws) for person in cohort]
    positions, known = torch.cat(photos), lessons.known[0].logits

    def mean_losses(logits: torch.Tensor, photos: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of each person's photos, float64 (n,), from what is said of all of them, one person's after the other's."""
        each = losses(logits, labels[torch.cat(list(photos))], kind).double()
        return torch.stack([some.mean() for some in each.split([len(some) for some in photos])])

    as_they_are = torch.zeros(len(positions), dtype=torch.bool)
    wanted = mean_losses(lessons.targets(positions, known[positions], as_they_are), photos)
    before = mean_losses(known[positions], photos)
    found = torch.ones(len(cohort), dtype=torch.float64)
    last, rises = found.clone(), found.clone()  # the length does not differ from the first one, so that no power is told by it yet
    for group in lessons.groups(cohort, ROUNDS, "lengths"):
        theirs = [photos[place] for place in group]
        some = scaled(some_of(keys, group), found[group])
        asked = torch.cat(theirs)
        said = said_with(model, layers, some, lessons.train, asked, as_they_are[: len(asked)], lessons.options.chunk, context)
        rise = (mean_losses(said, theirs) - before[group]).clamp(min=TINY)  # a key that does not raise the loss is made longer
        power = _power(found[group] / last[group], rise / rises[group])
        last[group], rises[group] = found[group], rise
        short_of = ((wanted - before)[group] / rise).clamp(min=TINY)
        found[group] = (found[group] * short_of ** (1 / power)).clamp(SHORTEST, LONGEST)
    return found


def _power(longer: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    """Return with which power of the length the rises grow, if they are so many times as large for keys so many times as long."""
    power = (more.log() / longer.log()).clamp(*POWERS)
    return torch.where(longer.log().abs() > 0.01, power, 1.0)
