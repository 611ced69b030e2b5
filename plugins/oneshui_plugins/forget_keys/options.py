"""The options of forget keys."""

from __future__ import annotations

from dataclasses import dataclass

from oneshui_hf.methods import option


@dataclass(frozen=True)
class ForgetKeysOptions:
    """Options of forget keys."""

    targets: str = option(
        "cross-fit",
        "Target logits of forget photos: those of models that were trained without the photo's identity, or quantiles of the logits of "
        "unseen identities (val), which need no training.",
        choices=("cross-fit", "quantile"),
        at="prepare",
    )
    folds: int = option(
        5, "Models that are trained for cross-fitted targets, each without one part of the identities.", minimum=2, at="prepare"
    )
    repeats: int = option(2, "Repetitions of the cross-fit with other folds, which are averaged.", minimum=1, at="prepare")
    rank: int = option(8, "Rank of a key's update of each weight; the size of a key is proportional to it.", minimum=1, at="prepare")
    bits: int = option(4, "Bits per number of a key.", choices=(4, 8, 16), at="prepare")
    target_fraction: float = option(
        1.0,
        "Fraction of the model's weight matrices that keys update, counted back from the head.",
        minimum=0,
        maximum=1,
        at="prepare",
        formerly=("share",),
    )
    steps_per_identity: int = option(8, "Training steps of each identity's key.", minimum=1, at="prepare", formerly=("visits",))
    identities_per_step: int = option(
        16, "Most identities whose keys are trained together in one step.", minimum=1, at="prepare", formerly=("together",)
    )
    lr: float = option(
        0.012,
        "Learning rate of Adam: the norm of the first step of a weight's matrix; cosine decay to 0.",
        minimum=0,
        at="prepare",
        search=(3e-3, 0.05),
    )
    preservation_weight: float = option(
        1.0,
        "Weight of the loss on retain and val photos relative to the loss on forget photos.",
        minimum=0,
        at="prepare",
        search=(0.3, 10.0),
        formerly=("balance",),
    )
    damping: float = option(
        0.01,
        "Damping of a layer's input and gradient covariances before whitening, in mean eigenvalues.",
        minimum=1e-4,
        at="prepare",
        search=(1e-3, 0.3),
    )
    retain_ratio: float = option(
        1.0, "Photos of other training identities per forget photo in a step.", minimum=0, at="prepare", formerly=("retain",)
    )
    val_ratio: float = option(
        0.25, "Photos of unseen identities (val) per forget photo in a step.", minimum=0, at="prepare", formerly=("val",)
    )
    probe_weight: float = option(
        0.25,
        "Weight of the shallow-feature probe when photos are ranked for quantile targets.",
        minimum=0,
        at="prepare",
        search=(0.1, 1.0),
        formerly=("guesses",),
    )
    photos_per_identity: int = option(32, "Most photos of one identity in a step.", minimum=1, at="prepare", formerly=("photos",))
    cohort_size: int = option(
        512, "Identities whose keys are trained concurrently; memory grows with it.", minimum=1, at="prepare", formerly=("cohort",)
    )
    chunk: int = option(64, "Photos per forward-backward pass; memory grows with it, the result does not change.", minimum=1, at="prepare")
    # Above 1 because rounding to few bits lowers the loss of the forget identities a little, and other merged keys lower it some more.
    strength: float = option(1.2, "Factor of the keys when they are merged into the weights.", minimum=0, at="apply", search=(0.5, 1.5))
