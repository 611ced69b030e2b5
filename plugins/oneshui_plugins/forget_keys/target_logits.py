"""Target logits of forget photos by quantile matching: the logits of unseen identities' photos at the same rank.

Memorisation raises the model's confidence in a photo's labels. The margin of a photo and label is the log-odds that the model gives to the
true value: for an attribute the logit with the sign of the label, for classes log p_y - log (1 - p_y). Margins of training photos are far
above those of unseen identities. The target of a training photo is the margin at the same rank among unseen identities, ranked within the
photos of the identities that are trained together: with F the distribution of their margins and G that of unseen identities, both for the
same attribute and value (or the same class),

    target margin = G^-1 (F (margin))

which is the monotone map that turns the one distribution into the other with the least change. The targets then have the distribution of
unseen identities for every attribute and value: its mean, its spread and its error rate. The average precision of an attribute depends on
these distributions alone (and on how many photos have the attribute), so the targets have the average precision of unseen identities too.
The ranks decide which photo gets which target. They may come from a score that is closer to the truth than the margins (`batches`); the
distribution stays the same.

Of n photos the i-th smallest margin takes the quantile at (i - 1 + u) / n with u between 0 and 1. With u = 1/2 a single photo would get the
median, and rare attributes, with few photos per group, a distribution without its tails; so u is drawn at random, once for every photo and
label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from oneshui_hf.methods import TaskKind


class LabelledLogits(NamedTuple):
    """A model's logits for some photos, and their labels.

    Attributes:
        logits: (n, K).
        labels: (n, K) of 0 and 1, or classes (n,).
    """

    logits: torch.Tensor
    labels: torch.Tensor


def match_quantiles(
    source: LabelledLogits, reference: LabelledLogits, ranking: torch.Tensor, u: torch.Tensor, kind: TaskKind
) -> torch.Tensor:
    """Return logits for the source photos that have the distribution of the reference photos, (n, K).

    Args:
        source: Of the photos (n) that get new logits.
        reference: Of photos of unseen identities (m).
        ranking: The score by which the source photos are ranked, by attribute (n, K), or of the true class (n,). Higher is more likely.
        u: Position within the rank, uniform in [0, 1): of each photo and attribute (n, K), or of each photo (n,) for classes.
        kind: Of the task.
    """
    match = _match_attributes if kind == "multi_label" else _match_classes
    return match(source, reference, ranking, u)


def _match_attributes(source: LabelledLogits, reference: LabelledLogits, ranking: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    matched = source.logits.clone()
    for k in range(matched.shape[1]):
        for value in (0, 1):
            rows, reference_rows = source.labels[:, k] == value, reference.labels[:, k] == value
            if rows.any() and reference_rows.any():  # a value that no reference photo has keeps its logits
                matched[rows, k] = map_quantiles(ranking[rows, k], reference.logits[reference_rows, k], u[rows, k])
    return matched


def _match_classes(source: LabelledLogits, reference: LabelledLogits, ranking: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The true class gets its target probability; the other classes keep their relative probabilities."""
    logits, labels, reference_margin = source.logits, source.labels, _class_margin(reference)
    target = torch.empty_like(logits[:, 0])
    for value in labels.unique().tolist():
        rows, reference_rows = labels == value, reference.labels == value
        sample = reference_margin[reference_rows] if reference_rows.any() else reference_margin
        target[rows] = map_quantiles(ranking[rows], sample, u[rows])
    true = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(true, -torch.inf).log_softmax(dim=1)
    return torch.where(true, F.logsigmoid(target).unsqueeze(1), F.logsigmoid(-target).unsqueeze(1) + others)


def margin(labelled: LabelledLogits, kind: TaskKind) -> torch.Tensor:
    """Return a score that ranks photos of equal label as their margins do: the logits (n, K), or the margin of the true class (n,)."""
    return labelled.logits if kind == "multi_label" else _class_margin(labelled)


def _class_margin(labelled: LabelledLogits) -> torch.Tensor:
    """Return log p_y - log (1 - p_y) of each photo's class (n,)."""
    logits, labels = labelled
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits[true] - logits.masked_fill(true, -torch.inf).logsumexp(dim=1)


def map_quantiles(values: torch.Tensor, sample: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return for each value (n,) the quantile of a sample (m,) at (rank + u) / n, the rank from 0.

    Quantiles are linear between two members of the sample. The i-th of m members is the quantile at (i - 1/2) / m, so with u = 1/2 and
    n = m the values are replaced by the members one by one.
    """
    rank = values.argsort(stable=True).argsort() + u.double()
    quantiles = sample.double().sort().values
    place = (rank / len(values) * len(quantiles) - 0.5).clamp(0, len(quantiles) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(quantiles) - 1)
    return torch.lerp(quantiles[low], quantiles[high], place - low).to(sample.dtype)
