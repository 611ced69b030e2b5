"""What forgetting the person on a photo would change. Nothing is written: the new model exists in memory only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..data.images import to_pixels
from ..data.preprocess import Preprocess
from ..models.outputs import probabilities, require_finite_logits
from ..reporting import Reporter
from ..runs import Run
from ..stages.command_options import UnlearnOptions
from ..stages.list_runs import stored_metrics
from ..stages.requests.verdict import photo_line
from ..stages.unlearn import SupportPhoto, compute_unlearned
from ..stages.unseen_range import judged
from .evaluated import runs_computed_from
from .occlusion import occlusion_map
from .photos import Photo, Samples
from .prediction import LabelBar, PhotoCosts, label_bars, photo_costs

BATCH = 16
STORED_SETS = {"retain": "people that the model keeps (retain)", "val": "unseen identities (val)", "test": "unseen identities (test)"}


@dataclass(frozen=True)
class StoredCosts:
    """The scores of an evaluated run of the same method and model: what forgetting its people cost the others.

    Attributes:
        forget: Number of people that it forgets.
        score: "map" or "accuracy".
        rows: Set, score before and score after, in percent.
    """

    forget: int
    score: str
    rows: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class Trial:
    """What forgetting would change.

    Attributes:
        method: The method.
        bars: The labels, before and after.
        loss: The losses of the photo, the range of unseen identities and the verdict; see `unseen_range.judged`.
        sentence: The same in words.
        maps: What the prediction depends on: before, after, and after minus before; each (GRID, GRID).
        samples: What changes for photos of other people; None without any.
        stored: Scores of an earlier evaluation; None without one.
        seconds: How long the method took.
    """

    method: str
    bars: Sequence[LabelBar]
    loss: dict[str, Any]
    sentence: str
    maps: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    samples: PhotoCosts | None
    stored: StoredCosts | None
    seconds: float


def try_method(
    run: Run,
    photo: Photo,
    options: UnlearnOptions,
    identity: str | None,
    samples: Samples,
    ranges: torch.Tensor | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Trial:
    """Compute what forgetting the person on a photo would change.

    Args:
        run: The model.
        photo: The photo.
        options: The request: `images` names the photo in messages, `method` the method.
        identity: The identity on the photo; None if a method does not need it, or finds it by the face.
        samples: Photos of other people.
        ranges: See `prediction.unseen_ranges`.
        accelerator: The device.
        reporter: For warnings, and the question about an uncertain match.

    Raises:
        UsageError: As `oneshui unlearn`.
        OneshuiError: As `oneshui unlearn`.
    """
    support = [SupportPhoto(photo.image, identity)]
    found = compute_unlearned(run, options, accelerator=accelerator, reporter=reporter, support=support)
    kind, names = found.context.task.kind, found.context.task.label_names
    models = found.model.eval(), found.unlearned.eval()
    with torch.no_grad():
        logits = [require_finite_logits(model(pixel_values=found.request.pixels).logits) for model in models]
    before, after = (probabilities(of, kind)[0].cpu() for of in logits)
    pixels = to_pixels(photo.image, found.preprocess.size)
    maps = [occlusion_map(model, pixels, found.request.labels[0], found.preprocess, kind) for model in models]
    costs = None
    if samples.images:
        sampled = [_sample_logits(model, samples, found.preprocess, accelerator.device) for model in models]
        costs = photo_costs(sampled[0], sampled[1], kind)
    loss = judged(found.report, 0)
    return Trial(
        options.method_name,
        label_bars(names, before, after, ranges),
        loss,
        photo_line(loss),
        (maps[0], maps[1], maps[1] - maps[0]),
        costs,
        stored_costs(run, options.method_name),
        found.report["seconds"],
    )


def _sample_logits(model: nn.Module, samples: Samples, preprocess: Preprocess, device: torch.device) -> torch.Tensor:
    """Return the logits of the photos of other people (n, K)."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(samples.images), BATCH):
            pixels = np.stack([to_pixels(image, preprocess.size) for image in samples.images[start : start + BATCH]])
            parts.append(model(pixel_values=preprocess(torch.from_numpy(pixels).to(device))).logits.cpu())
    return require_finite_logits(torch.cat(parts))


def stored_costs(run: Run, method: str) -> StoredCosts | None:
    """Return the scores before and after of an evaluated run next to this one that the method computed from it; None without one."""
    before = stored_metrics(run)
    for other in runs_computed_from(run):
        after = stored_metrics(other)
        score = after.get("score")
        if other.record.report.get("method") != method or score is None or before.get("score") != score:
            continue
        found = [(words, _score(before, name, score), _score(after, name, score)) for name, words in STORED_SETS.items()]
        rows = [(words, low, high) for words, low, high in found if low is not None and high is not None]
        if rows:
            return StoredCosts(int(other.record.report.get("people") or 0), score, rows)
    return None


def _score(metrics: dict[str, Any], name: str, score: str) -> float | None:
    value = (metrics.get(name) or {}).get(score)
    return float(value) if isinstance(value, int | float) else None
