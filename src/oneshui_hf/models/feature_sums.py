"""Integer sums of features and labels, and the linear head that follows from them in closed form.

Features are rounded to a fixed grid, so their sums are integers. Integers below 2^53 are added and multiplied exactly in float64, in any
order. So the sums of a training set less those of some photos equal the sums of the set without these photos, bit for bit, and the same
solver gives the same head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.schema import TaskKind
from ..errors import OneshuiError
from ..processes import single_thread

GRID = 64  # steps per unit of a feature; features have a mean square of 1
LIMIT = 2**15 - 1  # largest integer of a feature; a vector of 262,144 numbers with a mean square of 1 does not reach it
MAX_ROWS = (2**53 - 1) // LIMIT**2
PRIOR_COUNT = 0.5  # added to each count, so that the log-odds of a label without positives are finite


def round_to_grid(features: torch.Tensor) -> torch.Tensor:
    """Return features as integers of the grid, int16. They should be float64: rounding errors of float32 reach the next integer."""
    return (features * GRID).round().clamp(-LIMIT, LIMIT).to(torch.int16)


@dataclass(frozen=True)
class FeatureSums:
    """Sums over the rows of a training set, one row per photo, or two with mirror images. Float64 tensors of integers below 2^53.

    Attributes:
        count: Number of rows.
        x: Sum of the features, (d,).
        y: Sum of the labels, 0 or 1 each, (K,).
        xx: Sum of the products of two features, (d, d).
        xy: Sum of the products of a feature and a label, (d, K).
    """

    count: int
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor

    @classmethod
    def zeros(cls, features: int, labels: int, device: torch.device | str = "cpu") -> FeatureSums:
        """Return the sums of no rows."""
        sizes = {"x": (features,), "y": (labels,), "xx": (features, features), "xy": (features, labels)}
        return cls(0, **{name: torch.zeros(size, dtype=torch.float64, device=device) for name, size in sizes.items()})

    @classmethod
    def of(cls, rows: torch.Tensor, labels: torch.Tensor) -> FeatureSums:
        """Return the sums of some rows.

        Args:
            rows: Integer features of `round_to_grid`, (n, d).
            labels: 0 or 1, (n, K).

        Raises:
            OneshuiError: There are too many rows for exact sums.
        """
        require_exact(len(rows))
        x, y = rows.double(), labels.double()
        return cls(len(rows), x.sum(dim=0), y.sum(dim=0), x.mT @ x, x.mT @ y)

    def __add__(self, other: FeatureSums) -> FeatureSums:
        """Return the sums of both sets of rows. `OneshuiError` if they are too many for exact sums."""
        require_exact(self.count + other.count)
        return FeatureSums(self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy)

    def __sub__(self, other: FeatureSums) -> FeatureSums:
        """Return the sums of the rows without those of `other`.

        Raises:
            OneshuiError: No row is left, or the rows of `other` are not among these.
        """
        left = FeatureSums(self.count - other.count, self.x - other.x, self.y - other.y, self.xx - other.xx, self.xy - other.xy)
        if left.count <= 0:
            raise OneshuiError("The request contains all training identities, so no photo is left to compute a head from.")
        if left.xx.diagonal().min() < 0 or left.y.min() < 0 or left.y.max() > left.count:
            raise OneshuiError("The sums do not contain the photos of the request; prepare again.")
        return left

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the sums as int64 tensors, `xx` as its upper triangle, row by row."""
        rows, columns = _triangle(len(self.x))
        parts = {"x": self.x, "y": self.y, "xx": self.xx[rows, columns], "xy": self.xy}
        return {"count": torch.tensor([self.count])} | {name: tensor.to(torch.int64) for name, tensor in parts.items()}

    @staticmethod
    def shapes(features: int, labels: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `tensors`."""
        return {"count": (1,), "x": (features,), "y": (labels,), "xx": (features * (features + 1) // 2,), "xy": (features, labels)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> FeatureSums:
        """Return the sums that `tensors` described."""
        x = tensors["x"].double()
        xx = x.new_zeros(len(x), len(x))
        rows, columns = _triangle(len(x))
        xx[rows, columns] = xx[columns, rows] = tensors["xx"].double()
        return cls(int(tensors["count"]), x, tensors["y"].double(), xx, tensors["xy"].double())


def _triangle(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = torch.triu_indices(size, size)
    return rows, columns


def require_exact(count: int) -> None:
    """Check that sums over this many rows are exact in float64.

    Raises:
        OneshuiError: They are not.
    """
    if count > MAX_ROWS:
        raise OneshuiError(
            f"A head in closed form is exact for up to {MAX_ROWS:,} photos, mirror images included, not {count:,}: larger sums would be "
            "rounded. Train on fewer photos, or with --augment none."
        )


def solve_head(sums: FeatureSums, shrinkage: float, temperature: float, kind: TaskKind) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head of linear discriminant analysis: weights (K, d) and bias (K,) for features before rounding, float64.

    With p the share of a label, m the mean of the standardised features and d_k that of the photos with label k less m, the total
    covariance T of standardised features and A = T + shrinkage I, the within-class covariance is T less a term of low rank. For an
    attribute it is T - p/(1-p) d d^T, so by Sherman and Morrison its discriminant is proportional to the ridge regression b = A^-1 c of
    the attribute, c = p d:

        w = b / (p (1-p) - c^T b),    evidence(x) = w^T (x - m) - (1 - 2p) w^T c / (2 p (1-p))

    For classes it is T - sum_k p_k d_k d_k^T, and by Woodbury with C = [p_k d_k], B = A^-1 C, P = diag(p):

        W = B P^-1 (I - C^T B P^-1)^-1,    evidence_k(x) = w_k^T (x - m) - w_k^T d_k / 2

    The logit is the label's log-odds (or the class's log-share) plus temperature * evidence. Each feature's variance is increased by that
    of one grid step, so that a feature that rounding makes nearly constant has little weight.

    The result depends on the integers alone, and not on the number of threads: a single one computes it.

    Args:
        sums: The sums.
        shrinkage: Added to the diagonal of the standardised covariance.
        temperature: Factor of the evidence.
        kind: Attributes or classes.
    """
    with single_thread(), torch.no_grad():
        count = float(sums.count)
        mean, share = sums.x / count, sums.y / count
        covariance = sums.xx / count
        covariance -= torch.outer(mean, mean)
        spread = (covariance.diagonal() + 1).sqrt()
        covariance /= spread
        covariance /= spread.unsqueeze(1)
        covariance.diagonal().add_(shrinkage)
        cross = (sums.xy / count - torch.outer(mean, share)) / spread.unsqueeze(1)
        ridge = torch.cholesky_solve(cross, torch.linalg.cholesky(covariance))
        if kind == "multi_label":
            variance = share * (1 - share)
            inverse = torch.where(variance > 0, 1 / variance, 0.0)
            weights = ridge * torch.where(variance > 0, 1 / (variance - (cross * ridge).sum(dim=0)), 0.0)
            evidence = -(0.5 - share) * inverse * (weights * cross).sum(dim=0)
        else:
            inverse = torch.where(share > 0, 1 / share, 0.0)
            mixing = torch.eye(len(share), dtype=share.dtype) - cross.mT @ ridge * inverse
            weights = torch.linalg.solve(mixing, ridge * inverse, left=False)
            evidence = -0.5 * inverse * (weights * cross).sum(dim=0)
        weights = weights / spread.unsqueeze(1)
        bias = log_prior(sums, kind) + temperature * (evidence - weights.mT @ mean)
        return (temperature * GRID) * weights.mT, bias


def log_prior(sums: FeatureSums, kind: TaskKind) -> torch.Tensor:
    """Return the log-odds of each attribute or the log-share of each class in the training set, (K,) float64."""
    positive = sums.y + PRIOR_COUNT
    if kind == "multi_label":
        return (positive / (sums.count - sums.y + PRIOR_COUNT)).log()
    return (positive / positive.sum()).log()
