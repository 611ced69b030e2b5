"""Trackers (`--report-to`): numbers of a training, a preparation or a benchmark, sent to Accelerate's trackers by the main process.

A tracker receives numbers under fixed names, and the options that may be published: no path, name of a folder, identity or image. Its
project is called "oneshui"; a tracker that names runs chooses the name itself.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OneshuiError, UsageError, did_you_mean, first_line
from ..name_lists import split_names
from ..processes import on_main
from ..progress import LINE_INTERVAL, Clock, Entry, Interval, TrainingProgress
from ..reporting import ForwardingReporter, Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator

TRACKERS = ("trackio", "tensorboard", "wandb")
NONE = "none"
PROJECT = "oneshui"
LOGS = "logs"  # next to a run: its files for TensorBoard
KEY = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
# What wandb collects by itself contains the command with its paths, the user's and the machine's name, and what is printed.
WANDB = {"x_disable_meta": True, "x_disable_machine_info": True, "disable_git": True, "disable_code": True, "console": "off", "host": "-"}


def check_report_to(report_to: str) -> tuple[str, ...]:
    """Return the trackers that `--report-to` names.

    Raises:
        UsageError: One is unknown or not installed.
    """
    names = tuple(name for name in split_names(report_to) if name != NONE)
    for name in names:
        if name not in TRACKERS:
            known = (*TRACKERS, NONE)
            raise UsageError(f"--report-to takes {', '.join(known)}, not '{name}'.{did_you_mean(name, known)}")
        if find_spec(name) is None:
            raise UsageError(f'{name} is not installed; run `pip install "oneshui-hf[{name}]"`, or leave it out of --report-to.')
    return tuple(dict.fromkeys(names))


@contextlib.contextmanager
def tracked(report_to: str, folder: Path, config: Mapping[str, Any], accelerator: Accelerator, reporter: Reporter) -> Iterator[Reporter]:
    """Yield a reporter that also sends numbers to the trackers, until the block ends.

    Args:
        report_to: The value of `--report-to`.
        folder: What the command writes. TensorBoard's files are written next to it, since it may be replaced.
        config: Options that may be published.
        accelerator: Starts the trackers, on the main process.
        reporter: Gets everything as well.

    Raises:
        UsageError: See `check_report_to`.
        OneshuiError: A tracker cannot be started. It is raised on all processes.
    """
    names = check_report_to(report_to)
    if not names:
        yield reporter
        return
    on_main(accelerator, lambda: _start(names, folder, config, accelerator))
    try:
        yield TrackingReporter(reporter, accelerator)
    finally:
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints, and stdout may be read as JSON
            for tracker in accelerator.trackers:
                tracker.finish()
        accelerator.trackers.clear()


def _start(names: tuple[str, ...], folder: Path, config: Mapping[str, Any], accelerator: Accelerator) -> None:
    from accelerate.tracking import filter_trackers

    place = folder.resolve()
    accelerator.project_configuration.logging_dir = str(place.parent / LOGS / place.name)
    accelerator.log_with = filter_trackers(list(names), accelerator.logging_dir)
    if missing := sorted(set(names) - {str(name) for name in accelerator.log_with}):  # installed, but cannot be imported
        raise OneshuiError(f"{missing[0]} cannot be used by Accelerate; install it again, or leave it out of --report-to.")
    known = {key: value for key, value in config.items() if isinstance(value, bool | int | float | str)}  # None is no hyperparameter
    try:
        with contextlib.redirect_stdout(sys.stderr):
            accelerator.init_trackers(PROJECT, known, {"wandb": {"settings": WANDB}})
    except Exception as error:  # of a library, or of its server
        raise OneshuiError(f"The trackers {', '.join(names)} cannot be started ({first_line(error).rstrip('.')}).") from error


class TrackingReporter(ForwardingReporter):
    """Sends numbers to the trackers of an accelerator, and forwards everything to another reporter."""

    def __init__(self, reporter: Reporter, accelerator: Accelerator, clock: Clock = time.monotonic) -> None:
        super().__init__(reporter)
        self._accelerator, self._clock = accelerator, clock
        self._offset = 0  # steps of earlier trainings of the same command, such as those of other shards

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Send the numbers of a step, except those that are not finite.

        Raises:
            OneshuiError: A name may be a person's or a folder's.
        """
        if wrong := [name for name in values if not KEY.fullmatch(name)]:
            raise OneshuiError(f"'{wrong[0]}' is no name of a number for trackers; use lower-case letters, digits, -, _ and /.")
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        if finite and self._accelerator.is_main_process:
            self._accelerator.log(finite, step=step)
        super().metrics(values, step)

    @contextlib.contextmanager
    def training(self, epochs: int, steps: int, first: int = 0) -> Iterator[TrainingProgress]:
        """Forward a training, and send its numbers after each epoch and at most every 30 seconds in between."""
        offset, due = self._offset, Interval(LINE_INTERVAL, self._clock)
        self._offset += epochs * steps

        def send(progress: TrainingProgress, entry: Entry | None) -> None:
            if entry is None and not due.has_passed():
                return
            numbers = {"train/loss": progress.loss(), "train/images_per_second": progress.images_per_second}
            numbers["train/epoch"] = progress.done / max(steps, 1)
            numbers |= {f"val/{name.removeprefix('val_')}": value for name, value in (entry or {}).items() if name.startswith("val_")}
            self.metrics({name: value for name, value in numbers.items() if value is not None}, offset + progress.done)

        with super().training(epochs, steps, first) as progress:
            progress.listeners.append(send)
            yield progress


def training_config(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training options that may be published, with the public names of data set and model."""
    from .publishing.redaction import public_training_options

    return public_training_options(options)


def method_config(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of a method, and its options that may be published."""
    from .publishing.redaction import public_method_options

    return {"method": method} | public_method_options(method, options)
