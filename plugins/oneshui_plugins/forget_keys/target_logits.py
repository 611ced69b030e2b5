"""What a model would say of people's photos if they were strangers', from what it says of strangers.

Memorising a photo makes the model surer of its labels. Let the margin of a photo and label be the log-odds that the model gives to what
is true: of one attribute, the logit with the sign of the label; of classes, log p_y - log (1 - p_y). Margins of training photos lie far
above those of strangers' photos. A stranger's answer to a training photo is taken to be the one at the same rank among the photos of
those who ask together: with F the distribution of their margins and G that of strangers, both of the same attribute and the same value of
it (or of the same class),

    target margin = G^-1 (F (margin))

which is the monotone map that turns the one distribution into the other with the least change. After it the targets have the strangers'
distribution for every attribute and value: its mean, its spread and its share of errors. Since the average precision of an attribute
depends on these distributions alone (and on how many photos have the attribute), the targets have the strangers' average precision too.
Which photo gets which of the answers is decided by the ranks, and these may be by something that is nearer to the truth than the margins
(`lessons`); the distribution stays the same.

Of n photos the i-th smallest margin takes the quantile at (i - 1 + u) / n with u between 0 and 1. Half would give a single photo the
median, and rare attributes, of which few photos ask together, a distribution without its tails; so u is drawn, once for every photo and
label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind


class Said(NamedTuple):
    """What a model says of some photos, and what is true of them.

    Attributes:
        logits: (n, K).
        labels: (n, K) of 0 and 1, or classes (n,).
    """

    logits: torch.Tensor
    labels: torch.Tensor


def as_strangers(said: Said, strangers: Said, order: torch.Tensor, luck: torch.Tensor, kind: TaskKind) -> torch.Tensor:
    """Return logits of some people's photos as they would be of strangers' photos, (n, K).

    Args:
        said: What the model says of these people's photos (n).
        strangers: What it says of strangers' (m).
        order: What the photos are ranked by, higher for what is more likely: by attribute (n, K), or of the true class (n,).
        luck: u of each photo and attribute (n, K), or of each photo (n,) where labels are classes.
        kind: Of the task.
    """
    mapped = _attributes if kind == "multi_label" else _classes
    return mapped(said, strangers, order, luck)


def _attributes(said: Said, strangers: Said, order: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
    mapped = said.logits.clone()
    for k in range(mapped.shape[1]):
        for value in (0, 1):
            ours, theirs = said.labels[:, k] == value, strangers.labels[:, k] == value
            if ours.any() and theirs.any():  # a value that no stranger has leaves its photos as they are
                mapped[ours, k] = at_the_same_rank(order[ours, k], strangers.logits[theirs, k], luck[ours, k])
    return mapped


def _classes(said: Said, strangers: Said, order: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
    """The true class gets its target probability; the others share the rest as they do now."""
    logits, labels, strange = said.logits, said.labels, _margins(strangers)
    target = torch.empty_like(logits[:, 0])
    for value in labels.unique().tolist():
        ours, theirs = labels == value, strangers.labels == value
        target[ours] = at_the_same_rank(order[ours], strange[theirs] if theirs.any() else strange, luck[ours])
    true = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(true, -torch.inf).log_softmax(dim=1)
    return torch.where(true, F.logsigmoid(target).unsqueeze(1), F.logsigmoid(-target).unsqueeze(1) + others)


def sureness(said: Said, kind: TaskKind) -> torch.Tensor:
    """Return what orders photos with the same label as their margins do: the logits (n, K), or the margin of the true class (n,)."""
    return said.logits if kind == "multi_label" else _margins(said)


def _margins(said: Said) -> torch.Tensor:
    """Return log p_y - log (1 - p_y) of each photo's class (n,)."""
    logits, labels = said
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits[true] - logits.masked_fill(true, -torch.inf).logsumexp(dim=1)


def at_the_same_rank(values: torch.Tensor, sample: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
    """Return for each value (n,) the quantile of a sample (m,) at (rank + luck) / n, the rank from 0.

    Between two members of the sample it is linear. The i-th of m members stands for the quantile at (i - 1/2) / m, so that with a luck of
    1/2 n values and n members change places one by one.
    """
    rank = values.argsort(stable=True).argsort() + luck.double()
    quantiles = sample.double().sort().values
    place = (rank / len(values) * len(quantiles) - 0.5).clamp(0, len(quantiles) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(quantiles) - 1)
    return torch.lerp(quantiles[low], quantiles[high], place - low).to(sample.dtype)
