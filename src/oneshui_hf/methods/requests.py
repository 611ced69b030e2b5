"""A forget request: support images, their identities and their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Request:
    """The support images of a forget request, and what is known about them.

    Attributes:
        pixels: Preprocessed support images (n, 3, S, S).
        people: Identity key of each image; None where the identity is unknown.
        labels: Labels of each image in the format of the task, (n, K) or (n,); the model's own predictions where none were given.
        labels_given: Whether the labels were given.
        unseen_identities: Whether the model is known never to have seen these identities. True for an oracle, which unlearns the same
            request so that attacks can compare.
    """

    pixels: torch.Tensor
    people: tuple[str | None, ...]
    labels: torch.Tensor
    labels_given: bool
    unseen_identities: bool = False

    def __len__(self) -> int:
        return len(self.pixels)
