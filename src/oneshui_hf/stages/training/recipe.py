"""The training recipe: its version, checks of options that exclude each other, and its cost. It imports nothing heavy."""

from __future__ import annotations

from ...errors import UsageError
from ...options import fields, flag
from ..command_options import TrainOptions

RECIPE_VERSION = 1  # increase it when the same options train a different model: cached models are then trained again
CLOSED_FORM = "closed-form"  # of --head
GRADIENT_OPTIONS = (  # without effect on a head in closed form
    *("epochs", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "warmup_epochs"),
    *("keep", "sharded", "adapter_rank", "bf16", "fp16"),
)


def require_consistent_recipe(options: TrainOptions) -> None:
    """Check that no option is given that has no effect with the others.

    Raises:
        UsageError: An option of adapters is given without --sharded, or one of gradient training with --head closed-form.
    """
    known = fields(TrainOptions)
    given = [name for name in GRADIENT_OPTIONS if getattr(options, name) != known[name].default]
    if options.head == CLOSED_FORM and given:
        spelling = f"no_{given[0]}" if known[given[0]].default is True else given[0]
        raise UsageError(f"{flag(spelling)} has no effect with --head {CLOSED_FORM}, which trains nothing by gradients; omit it.")
    if not options.sharded and "adapter_rank" in given:
        raise UsageError("--adapter-rank applies to the adapters that --sharded trains; give both, or omit it.")


def seconds_per_photo(options: TrainOptions, forward: float, backward: float) -> float:
    """Return the time that a training spends on a photo of its training set.

    Args:
        options: The recipe.
        forward: Seconds of a pass without gradients.
        backward: Seconds of a pass with gradients.
    """
    if options.head == CLOSED_FORM:
        return 2 * (1 + (options.augment != "none")) * forward  # float64 takes about twice as long as float32
    return options.epochs * backward
