"""A forget request: support images, their identities and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import OneshuiError, UsageError

if TYPE_CHECKING:
    from .artefact import Artefact


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


def requested_identities(request: Request, artefact: Artefact, missing: str) -> list[str]:
    """Return the identities of a request to a method that prepares data for each identity, each once.

    Args:
        request: The request.
        artefact: With the data of the identities.
        missing: What the message states before their number, if there is no data: "is no key for".

    Raises:
        UsageError: The identity of a photo is not given.
        OneshuiError: Nothing is prepared for an identity.
    """
    if None in request.people:
        raise UsageError("This method acts on one identity at a time; name the identity on each photo with --identity.")
    people = sorted({person for person in request.people if person is not None})
    if count := sum(person not in artefact.people for person in people):
        raise OneshuiError(
            f"There {missing} {count} of the {len(people)} requested identities: nothing was prepared, or it was used and destroyed."
        )
    return people
