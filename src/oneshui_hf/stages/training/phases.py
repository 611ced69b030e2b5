"""Where the time of a training step goes: `--profile`.

Some steps of the first epoch are measured, after a few that include one-time initialisation. Reading and augmentation happen in a thread of
their own on CPUs, so that only the time in which the training waits for them adds to a step.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...files import new_folder
from ...runs import write_json
from ..timing import now

FOLDER, TRACE, TIMES = "profile", "trace.json", "times.json"
SKIPPED, MEASURED = 3, 10  # steps
IN_A_STEP = ("waiting", "copying", "forward", "backward", "update")  # phases of the training's own thread
BEFORE_A_STEP = ("reading", "augmentation")  # on CPUs in the thread that reads ahead; on GPUs part of "copying"


class Phases:
    """Measures nothing; `ProfiledPhases` measures some steps."""

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure a block as part of a phase."""
        del phase
        yield

    def step_ended(self) -> None:
        """Count a step."""

    def finish(self) -> str | None:
        """Write what was measured; return it in one line."""
        return None


class ProfiledPhases(Phases):
    """Measures the phases of some steps.

    Args:
        run: The folder in which the folder of the results is made.
        device: Where the training computes.
        steps: Steps of the training; with a few, all are measured.
    """

    def __init__(self, run: Path, device: torch.device, steps: int) -> None:
        self._folder, self._device = run / FOLDER, device
        self._skipped = min(SKIPPED, steps - 1)
        self._wanted = min(MEASURED, steps - self._skipped)
        self._done = 0
        self._seconds: dict[str, float] = defaultdict(float)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profiler = torch.profiler.profile(activities=activities)
        self._started = 0.0
        self._start_if_due()

    @property
    def _measures(self) -> bool:
        return self._skipped <= self._done < self._skipped + self._wanted

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Measure a block as part of a phase. A GPU then finishes each phase before the next one starts."""
        if not self._measures:
            yield
            return
        started = now(self._device)
        with torch.profiler.record_function(phase):
            yield
        self._seconds[phase] += now(self._device) - started

    def step_ended(self) -> None:
        """Count a step, and start or stop the trace."""
        self._done += 1
        self._start_if_due()
        if self._done == self._skipped + self._wanted:
            self._seconds["step"] = now(self._device) - self._started
            self._profiler.stop()

    def _start_if_due(self) -> None:
        if self._done == self._skipped:
            self._profiler.start()
            self._started = now(self._device)

    def finish(self) -> str | None:
        """Write the trace and the table to the run's folder; return the table in one line."""
        if self._done < self._skipped + self._wanted:
            return None
        per_step = {phase: 1e3 * self._seconds[phase] / self._wanted for phase in ("step", *IN_A_STEP, *BEFORE_A_STEP)}
        per_step["other"] = per_step["step"] - sum(per_step[phase] for phase in IN_A_STEP)
        values: dict[str, Any] = {"device": self._device.type, "steps": self._wanted, "ms_per_step": per_step}
        with new_folder(self._folder, replace=True) as scratch:
            write_json(scratch / TIMES, values)
            self._profiler.export_chrome_trace(str(scratch / TRACE))
        parts = ", ".join(f"{phase} {per_step[phase]:.1f}" for phase in (*IN_A_STEP, "other"))
        return f"A step takes {per_step['step']:.1f} ms: {parts}; written to {self._folder}."
