"""The options of forget keys."""

from __future__ import annotations

from dataclasses import dataclass

from oneshui_hf.methods import option


@dataclass(frozen=True)
class ForgetKeysOptions:
    """Options of forget keys."""

    rank: int = option(8, "Rank-one terms of a key a weight; its size grows with it.", minimum=1, at="prepare")
    bits: int = option(4, "Bits of a number of a key.", choices=(4, 8, 16), at="prepare")
    share: float = option(1.0, "Share of the model's weights that keys change, counted from the head.", minimum=0, maximum=1, at="prepare")
    visits: int = option(8, "Steps a person's key is learned in.", minimum=1, at="prepare")
    together: int = option(16, "Most people who ask together while keys are learned.", minimum=1, at="prepare")
    lr: float = option(
        0.012,
        "Length of the first of Adam's steps, for the matrix of a weight; the last ones are short.",
        minimum=0,
        at="prepare",
        search=(3e-3, 0.05),
    )
    balance: float = option(
        1.0,
        "Weight of what must stay (others' photos and strangers') against what must change.",
        minimum=0,
        at="prepare",
        search=(0.3, 10.0),
    )
    damping: float = option(
        0.01,
        "How much of the mean energy every direction of a layer's inputs and gradients is given before whitening.",
        minimum=1e-4,
        at="prepare",
        search=(1e-3, 0.3),
    )
    retain: float = option(
        1.0, "Photos of others held against in a step, as a share of the photos of those who ask.", minimum=0, at="prepare"
    )
    val: float = option(0.25, "Strangers' photos (val) held against in a step, as the same share.", minimum=0, at="prepare")
    guesses: float = option(
        0.25,
        "Say of guesses from the model's first layers, beside its answers, in which photo gets which stranger's answer.",
        minimum=0,
        at="prepare",
        search=(0.1, 1.0),
    )
    photos: int = option(32, "Most photos of a person in a step.", minimum=1, at="prepare")
    cohort: int = option(512, "People whose keys are learned at the same time; memory grows with it.", minimum=1, at="prepare")
    chunk: int = option(64, "Photos a forward-backward pass; memory grows with it, the result does not change.", minimum=1, at="prepare")
    # Beside the lengths that were found: rounding to few bits takes a little off the loss of who asks, and company some more.
    strength: float = option(1.1, "Factor of the keys where they are used.", minimum=0, at="apply", search=(0.5, 1.5))
