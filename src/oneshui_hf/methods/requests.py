"""Requests to be forgotten: real ones, and those simulated from training people while their photos are still there."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Request:
    """What is handed in: photos, and what is known of them.

    Attributes:
        pixels: Preprocessed photos (n, 3, S, S).
        people: Per photo the identity key, or None where it is not known.
        labels: Per photo the labels as the task has them, (n, K) or (n,); the model's own guess where they were not given.
        labels_given: Whether they were given.
        strangers: Whether the model is known never to have seen them: an oracle, which is asked so that attackers can compare.
    """

    pixels: torch.Tensor
    people: tuple[str | None, ...]
    labels: torch.Tensor
    labels_given: bool
    strangers: bool = False

    def __len__(self) -> int:
        return len(self.pixels)
