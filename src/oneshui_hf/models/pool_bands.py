"""Pooling of a hidden state: the class token, and means over horizontal bands of the photo."""

from __future__ import annotations

import torch

BANDS = 4  # of a photo, from top to bottom: of portraits about hair, eyes, mouth and chin; the same for mirror images


def pool_bands(hidden: torch.Tensor, bands: int = BANDS) -> list[torch.Tensor]:
    """Return vectors (n, d): the class token if there is one, and the means of a hidden state over horizontal bands, from top to bottom.

    Args:
        hidden: Tokens (n, t, d), row by row, after a class token; or maps (n, d, h, w).
        bands: Number of bands; fewer if there are not as many tokens or places.
    """
    if hidden.dim() == 4:
        first, places = [], hidden.flatten(2).mT
    else:
        first, places = [hidden[:, 0]], hidden[:, 1:]
    return [*first, *(band.mean(dim=1) for band in places.tensor_split(min(bands, places.shape[1]), dim=1))]
