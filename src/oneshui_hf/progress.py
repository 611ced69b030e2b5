"""How far a long computation is: what is done, how fast, and how much time is left. This module prints nothing; a reporter does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Clock = Callable[[], float]  # seconds since any point in time

LINE_INTERVAL = 30.0  # seconds between two lines, where no bar can be drawn


def clock_time(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: 1:12:04."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def gigabytes(count: int) -> str:
    """Return a number of bytes in GB, or in MB below 0.1 GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


class Interval:
    """Whether enough time has passed since the last interval began."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        """Start the first interval.

        Args:
            seconds: Length of an interval.
            clock: Returns the time.
        """
        self._seconds, self._clock, self._last = seconds, clock, clock()

    def has_passed(self) -> bool:
        """Whether the interval is over. If so, the next one starts."""
        now = self._clock()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True

    def restart(self) -> None:
        """Start an interval now."""
        self._last = self._clock()


class WorkProgress:
    """Items of equal work, such as batches. As text: `Reading photos: 12 %, eta 0:03:20`."""

    def __init__(self, label: str, total: int, clock: Clock) -> None:
        """Start.

        Args:
            label: What is done.
            total: Number of items; 0 if unknown.
            clock: Returns the time.
        """
        self.label, self.total, self.done = label, total, 0
        self._clock, self._started = clock, clock()

    def __str__(self) -> str:
        if not self.total or not self.done:
            return f"{self.label}: {self.done:,} done"
        left = (self._clock() - self._started) / self.done * (self.total - self.done)
        return f"{self.label}: {100 * self.done / self.total:.0f} %, eta {clock_time(left)}"


Entry = Mapping[str, float]
Listener = Callable[["TrainingProgress", Entry | None], None]


class TrainingProgress:
    """A training over several epochs. As text: `epoch 3/30 step 410/5100 loss 0.41 812 img/s eta 1:12:04`.

    Attributes:
        epochs: Number of epochs.
        total: Number of steps of all epochs.
        done: Number of steps that are done, those before an interruption included.
        listeners: Called after each step, and with the entry of the history after each epoch.
    """

    def __init__(self, epochs: int, steps: int, first: int, clock: Clock) -> None:
        """Start.

        Args:
            epochs: Number of epochs.
            steps: Steps per epoch.
            first: Steps that were done before an interruption.
            clock: Returns the time.
        """
        self.epochs, self.total, self.done = epochs, epochs * steps, first
        self.listeners: list[Listener] = []
        self._steps, self._first, self._clock, self._started = max(steps, 1), first, clock, clock()
        self._images, self._since = 0, self._started  # of this epoch
        self._loss: Callable[[], float] | None = None
        self._speed: float | None = None
        self._entry: Entry | None = None

    def step(self, images: int, loss: Callable[[], float]) -> None:
        """Count a step.

        Args:
            images: Images of the step, over all processes.
            loss: Returns the mean loss of the epoch so far. Called only if it is shown, since it may wait for the device.
        """
        if self._entry is not None:  # the first step of another epoch; validation came before it, so its time is unknown
            self._entry, self._images, self._since = None, 0, self._clock()
        else:
            self._images += images
        self.done += 1
        self._loss = loss
        for listener in self.listeners:
            listener(self, None)

    def epoch(self, entry: Entry) -> None:
        """End an epoch.

        Args:
            entry: What the history contains of it: `epoch`, `train_loss`, and a score on val, if there is one.
        """
        self._speed = self.images_per_second
        self._entry = entry
        for listener in self.listeners:
            listener(self, entry)

    @property
    def images_per_second(self) -> float | None:
        """Images per second of this epoch's steps; None before they took any time."""
        if self._entry is not None:
            return self._speed
        seconds = self._clock() - self._since
        return self._images / seconds if seconds > 0 and self._images else None

    @property
    def seconds_left(self) -> float | None:
        """Remaining time, at the speed so far, with validation and checkpoints; None before the first step."""
        done = self.done - self._first
        return (self._clock() - self._started) / done * (self.total - self.done) if done else None

    def loss(self) -> float | None:
        """Return the mean loss of the epoch so far; None before the first step."""
        if self._entry is not None:
            return self._entry.get("train_loss")
        return self._loss() if self._loss else None

    def __str__(self) -> str:
        epoch = min(max(self.done - 1, 0) // self._steps + 1, self.epochs)
        words = [f"epoch {epoch}/{self.epochs} step {self.done}/{self.total}"]
        if (loss := self.loss()) is not None:
            words.append(f"loss {loss:.4g}")
        words += [f"{name.replace('_', ' ')} {value:.1f}" for name, value in (self._entry or {}).items() if name.startswith("val_")]
        if (speed := self.images_per_second) is not None:
            words.append(f"{speed:.0f} img/s")
        if (left := self.seconds_left) is not None:
            words.append(f"eta {clock_time(left)}")
        return " ".join(words)
