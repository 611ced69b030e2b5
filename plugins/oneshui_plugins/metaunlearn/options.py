"""Options of MetaUnlearn."""

from __future__ import annotations

from dataclasses import dataclass

from oneshui_hf.methods import StepOptions, option


@dataclass(frozen=True)
class MetaUnlearnOptions(StepOptions):
    """Options of MetaUnlearn."""

    steps: int = option(60, "Number of meta-steps, each on its own simulated requests.", minimum=1)
    epochs: int = option(0, "Passes over the identities that can be in simulated requests; 0 uses --steps instead.", minimum=0)
    lr: float = option(
        1e-3, "Peak learning rate of the loss network (AdamW with amsgrad, cosine schedule to 0).", minimum=0, search=(1e-4, 1e-2)
    )
    step: str = option("normalised", "normalised: a step of learned length; raw: --eta times the gradient.", choices=("normalised", "raw"))
    length_by: str = option(
        "model", "Learn one length for the model, or one per layer (block); they are rescaled together.", choices=("model", "layer")
    )
    eta: float = option(0.1, "Factor of the gradient in a raw step.", minimum=0, search=(1e-4, 1.0))
    unlearning_steps: int = option(
        1, "Gradient steps per unlearning, each of the whole eta or of an equal share of the learned length.", minimum=1
    )
    use_features: bool = option(
        True,
        "Give the loss network the input of the model's head, in addition to the probabilities, which it always has.",
        formerly=("see_features",),
    )
    use_targets: bool = option(True, "Give the loss network the photo's labels.", formerly=("see_targets",))
    use_identity: bool = option(
        True,
        "Give the loss network an embedding of the identity; without it --identity-dropout has no effect.",
        formerly=("see_identity",),
    )
    identity_dropout: float = option(
        0.5, "Probability that an identity of a simulated request is treated as unknown.", minimum=0, maximum=1
    )
    update_tokens: bool = option(True, "Also update the class token and the position embedding.", formerly=("move_tokens",))
    objective: str = option(
        "both",
        "Meta-objective: align the forget loss with the val loss before (original) or after the step (unlearned), or both; "
        "retain and val also keep that set's loss; scrub is SCRUB's objective.",
        choices=("both", "original", "unlearned", "retain", "val", "scrub"),
    )
    distance: str = option(
        "smooth-l1",
        "Distance between two losses; l2 is the squared difference; the objective scrub does not use it.",
        choices=("smooth-l1", "l1", "l2"),
    )
    weigh_by_score: bool = option(
        True, "Multiply each loss by (1 - score), the batch's score from 0 to 1; the objective scrub does not use it."
    )
    simulated_size: int | None = option(None, "Identities per simulated request; null means the size of the run's own request.", minimum=1)
    vary_size: bool = option(True, "Simulate requests of 1 to twice that many identities, not of that size only.")
    requests_per_step: int = option(1, "Simulated requests per meta-step, which the processes share.", minimum=1)
    holdout: float = option(
        0.0,
        "Share of the identities that can be in simulated requests, never trained on; the meta-objective on them is recorded.",
        minimum=0,
        maximum=0.9,
    )
    evaluate_every: int = option(20, "Meta-steps between two measurements on held-out identities.", minimum=1)
    early_stopping: bool = option(True, "Keep the loss network that is best on held-out identities; without --holdout the last.")
    images_per_set: int = option(
        128, "Maximum number of images per set (forget, val, retain) in a meta-step.", minimum=2, formerly=("photos",)
    )
    chunk: int = option(32, "Images per forward-backward pass; affects memory, not the result.", minimum=1)
