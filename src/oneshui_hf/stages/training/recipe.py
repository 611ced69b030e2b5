"""The training recipe: its version, checks of options that exclude each other, and its cost. It imports nothing heavy."""

from __future__ import annotations

import re

from ...errors import UsageError
from ...options import fields, flag
from ..command_options import TrainOptions

RECIPE_VERSION = 1  # increase it when the same options train a different model: cached models are then trained again
CLOSED_FORM = "closed-form"  # of --head
GRADIENT_OPTIONS = (  # without effect on a head in closed form
    *("epochs", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "warmup_epochs"),
    *("keep", "sharded", "adapter_rank", "bf16", "fp16", "gradient_accumulation_steps", "max_memory", "compile"),
    *("gradient_checkpointing", "save_steps", "profile"),
)
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def require_consistent_recipe(options: TrainOptions) -> None:
    """Check that no option is given that has no effect with the others.

    Raises:
        UsageError: An option of adapters is given without --sharded, or one of gradient training with --head closed-form; two options
            exclude each other; or --max-memory is no amount of memory.
    """
    known = fields(TrainOptions)
    given = [name for name in GRADIENT_OPTIONS if getattr(options, name) != known[name].default]
    if options.head == CLOSED_FORM and given:
        spelling = f"no_{given[0]}" if getattr(options, given[0]) is False else given[0]
        raise UsageError(f"{flag(spelling)} has no effect with --head {CLOSED_FORM}, which trains nothing by gradients; omit it.")
    if not options.sharded and "adapter_rank" in given:
        raise UsageError("--adapter-rank applies to the adapters that --sharded trains; give both, or omit it.")
    if options.bf16 and options.fp16:
        raise UsageError("--bf16 and --fp16 are two precisions of one training; give one of them.")
    for name in ("profile", "gradient_checkpointing"):
        if options.sharded and getattr(options, name):
            raise UsageError(f"{flag(name)} does not apply to the adapters that --sharded trains; omit one of them.")
    memory_limit(options.max_memory)


def memory_limit(text: str | None) -> int | None:
    """Return the bytes of `--max-memory`; None without it.

    Raises:
        UsageError: It is not a positive number with a unit.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text.strip(), re.ASCII)
    unit = {name.lower(): size for name, size in UNITS.items()}.get(found[2].lower()) if found else None
    if found is None or unit is None or not (limit := int(float(found[1]) * unit)):
        raise UsageError(f"--max-memory takes a number with a unit ({', '.join(UNITS)}), such as 20GiB, not '{text}'.")
    return limit


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
