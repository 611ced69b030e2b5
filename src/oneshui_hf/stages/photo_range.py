"""Whether a support image is unlike all photos that the model was tried on, such as noise, an empty image or a texture.

Training keeps, from val, what photos look like: the mean and the covariance of a few statistics of their pixels, and the largest
Mahalanobis distance of a photo. Val is used because a support image is new to the model, too, and because its people are in no
later request. Nothing of one photo is kept. The statistics do not depend on the model: the inputs of the head of a fine-tuned model were
tried, and differ less between portraits and noise than the pixels do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..data.face_set import FaceSet

PHOTO_RANGE, UNLIKE = "photo_range", "support_unlike"  # keys of a record's report
STATISTICS = 9
MIN_PHOTOS, MIN_PEOPLE, MAX_PHOTOS = 40, 8, 4096  # of val: fewer do not show what photos look like
SHRINKAGE = 0.05  # of the covariance towards its diagonal
BATCH = 256


def measure_photo_range(val: FaceSet) -> dict[str, Any]:
    """Return the entry of a record's report; empty if val is too small.

    The limit of the distance is the largest one of a photo to the photos of other people: each half of the people is compared with the
    other half.

    Args:
        val: Photos of unseen identities.
    """
    import torch

    from ..methods.simulation import sample
    from ..seeding import generator

    people = val.identities.unique()
    if len(val) < MIN_PHOTOS or len(people) < MIN_PEOPLE:
        return {}
    val = val.subset(sample(len(val), MAX_PHOTOS, generator(0, "photo range")))
    points = torch.cat([photo_statistics(val.raw_pixels(part)) for part in torch.arange(len(val)).split(BATCH)])
    is_first = torch.isin(val.identities, people[::2])
    halves = [(points[is_first], points[~is_first]), (points[~is_first], points[is_first])]
    limit = max(_distances(others, *_gaussian(fitted)).max().item() for fitted, others in halves)
    mean, whitening = _gaussian(points)
    rows, columns = torch.tril_indices(STATISTICS, STATISTICS)
    found = {
        "distance": _rounded(limit),
        "mean": [_rounded(value) for value in mean.tolist()],
        "whitening": [_rounded(value) for value in whitening[rows, columns].tolist()],  # lower triangle, row by row
    }
    return {PHOTO_RANGE: {**found, "photos": len(val), "people": len(people)}}


def unlike_photos(pixels: torch.Tensor, report: Mapping[str, Any]) -> list[bool] | None:
    """Return whether each photo is farther from the photos of val than each of them; None if the run does not contain their range.

    Args:
        pixels: The photos, uint8 (n, 3, S, S), at the size of the model's input.
        report: The report of the run's record.
    """
    import torch

    known = report.get(PHOTO_RANGE)
    if not isinstance(known, Mapping):
        return None
    whitening = torch.zeros(STATISTICS, STATISTICS, dtype=torch.float64)
    rows, columns = torch.tril_indices(STATISTICS, STATISTICS)
    whitening[rows, columns] = torch.tensor(known["whitening"], dtype=torch.float64)
    mean = torch.tensor(known["mean"], dtype=torch.float64)
    return [distance > known["distance"] for distance in _distances(photo_statistics(pixels), mean, whitening).tolist()]


def photo_statistics(pixels: torch.Tensor) -> torch.Tensor:
    """Return the statistics of photos, float64 (n, STATISTICS), with 1 as white.

    The logarithms of the mean difference of neighbouring pixels in grey, between rows and between columns, at the full size, at a half and
    at a quarter of it; the correlation of the grey photo with its mirror image; and the logarithms of the standard deviation of the colour
    (the channels without grey), with and without the mean colour.

    Args:
        pixels: uint8 (n, 3, S, S).
    """
    import torch
    import torch.nn.functional as F

    photos = pixels.double() / 255
    grey = photos.mean(dim=1, keepdim=True)
    found = []
    for scale in (1, 2, 4):
        smaller = F.avg_pool2d(grey, scale)
        found += [smaller.diff(dim=axis).abs().mean(dim=(1, 2, 3)).add(1e-3).log() for axis in (2, 3)]  # an empty image has finite ones
    centred = grey - grey.mean(dim=(2, 3), keepdim=True)
    found.append((centred * centred.flip(3)).sum(dim=(1, 2, 3)) / centred.square().sum(dim=(1, 2, 3)).clamp(min=1e-6))
    colour = photos - grey
    found += [part.flatten(1).std(dim=1).add(1e-2).log() for part in (colour, colour - colour.mean(dim=(2, 3), keepdim=True))]
    return torch.stack(found, dim=1)


def _gaussian(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of points (n, k) and the lower triangular W with W C W^T = I for their covariance C, shrunk to its diagonal.

    A statistic that is the same for all photos, such as the colour of grey ones, has a small variance instead of none.
    """
    import torch

    covariance = points.T.cov()
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.diag().diag() + 1e-6 * torch.eye(STATISTICS, dtype=points.dtype)
    factor = torch.linalg.cholesky(covariance)
    return points.mean(dim=0), torch.linalg.solve_triangular(factor, torch.eye(STATISTICS, dtype=points.dtype), upper=False)


def _distances(points: torch.Tensor, mean: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
    return ((points - mean) @ whitening.T).norm(dim=1)


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
