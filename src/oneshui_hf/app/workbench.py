"""The model of the page, and what is computed with it for a photo. One computation at a time."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.images import to_pixels
from ..desk.desk import Desk
from ..errors import OneshuiError, UsageError
from ..models.load import load_model
from ..models.outputs import probabilities, require_finite_logits
from ..recognition.encoders import EXTRA, DlibEncoder, dlib_is_installed
from ..recognition.matching import Calibration, Match
from ..reporting import Reporter
from ..runs import Run
from ..stages.app_options import AppOptions
from ..stages.command_options import UnlearnOptions
from ..stages.distributed import make_accelerator
from ..stages.identify import match_people
from ..stages.requests.identify import enrolled_artefact
from .choices import Choice, method_choices
from .examples import generated_examples
from .forgetting import Forgotten, forget, serve_and_answer
from .photos import Photo, fitness_warnings, read_samples
from .prediction import LabelBar, label_bars, unseen_ranges
from .trial import Trial, try_method

NOT_LOOKED_FOR = f"Faces are not looked for on photos, since dlib is not installed (`{EXTRA}`)."


@dataclass(frozen=True)
class Examination:
    """What the model predicts for a photo, and who is on it.

    Attributes:
        bars: The labels, the most probable first.
        warnings: What may be wrong with the photo.
        match: The most similar enrolled person; None if photos are not compared, for the reason in `unmatched`.
        calibration: Thresholds and error rates of the comparison.
        unmatched: Why photos are not compared.
        note: What was not done, in a sentence.
    """

    bars: list[LabelBar]
    warnings: list[str]
    match: Match | None
    calibration: Calibration | None
    unmatched: str | None
    note: str | None


class Workbench:
    """The model in service, and what the page computes with it.

    Attributes:
        run: The model in service. It changes when a new model is put into service on the page.
        options: The options of the command.
        choices: The methods that a photo can be tried with.
        examples: Generated photos to try the page with.
        photo_alone: Whether there is no desk, and no method that acts on an identity: on a Space.
    """

    def __init__(self, run: Run, options: AppOptions, reporter: Reporter, *, photo_alone: bool = False) -> None:
        """Load the model and the samples.

        Args:
            run: The model.
            options: The options of the command.
            reporter: For warnings.
            photo_alone: Leave out the desk and all methods that act on an identity.

        Raises:
            UsageError: The run is an oracle, or `--samples` contains no photo.
            OneshuiError: The run is not complete, or its model cannot be loaded.
        """
        if run.record.kind == "oracle":
            raise UsageError(f"{run.path} is an oracle, which has no identity to forget; name the original model.")
        self.options, self.photo_alone = options, photo_alone
        self._lock, self._accelerator = threading.Lock(), make_accelerator()
        self._samples = read_samples(options.samples)
        if self._samples.unreadable:
            reporter.warn(f"{self._samples.unreadable} files in {options.samples} are no photos that can be read, so they are left out.")
        self.examples = [] if photo_alone else generated_examples(run)
        self._use(run, reporter)

    def _use(self, run: Run, reporter: Reporter) -> None:
        """Show another model."""
        self.run = run.require_complete()
        self._model, self._preprocess, self._task = load_model(run.path, self._accelerator.device)
        self._ranges = unseen_ranges(run)
        self.choices: list[Choice] = method_choices(run, photo_alone=self.photo_alone, reporter=reporter)

    @functools.cached_property
    def _detector(self) -> DlibEncoder | None:
        """Finds faces on photos; None if dlib is not installed. It is loaded with the first photo."""
        return DlibEncoder() if dlib_is_installed() else None

    @property
    def input_size(self) -> int:
        """Side of the model's input, in pixels."""
        return self._preprocess.size

    @property
    def desk(self) -> Desk:
        """The request desk."""
        return Desk(Path(self.options.desk))

    def examine(self, photo: Photo, reporter: Reporter) -> Examination:
        """Return what the model predicts for a photo, who is on it, and what may be wrong with it.

        Raises:
            OneshuiError: The predictions are not finite.
        """
        with self._lock:
            pixels = np.stack([to_pixels(photo.image, self._preprocess.size)])
            with torch.no_grad():
                inputs = self._preprocess(torch.from_numpy(pixels).to(self._accelerator.device))
                logits = require_finite_logits(self._model(pixel_values=inputs).logits)
            bars = label_bars(self._task.label_names, probabilities(logits, self._task.kind)[0].cpu(), ranges=self._ranges)
            faces = self._detector.count_faces(photo.image) if self._detector else None
            warnings = fitness_warnings(photo.image, faces)
            found = (None, None, None) if self.photo_alone else self._match(photo, reporter)
            return Examination(bars, warnings, *found, NOT_LOOKED_FOR if faces is None else None)

    def _match(self, photo: Photo, reporter: Reporter) -> tuple[Match | None, Calibration | None, str | None]:
        """Return the most similar enrolled person with the calibration; or why photos are not compared."""
        try:
            artefact = enrolled_artefact(self.run)
            (match,), calibration = match_people([photo.image], artefact, self.options.face_encoder, self._accelerator, reporter)
        except OneshuiError as error:
            return None, None, str(error)
        return match, calibration, None

    def try_method(self, photo: Photo, choice: Choice, identity: str | None, reporter: Reporter) -> Trial:
        """Compute what forgetting would change, and write nothing. See `trial.try_method`."""
        options = UnlearnOptions(images=("The photo",), method=choice.name, face_encoder=None if identity else self._encoder(choice))
        with self._lock:
            return try_method(self.run, photo, options, identity, self._samples, self._ranges, self._accelerator, reporter)

    def _encoder(self, choice: Choice) -> str | None:
        return self.options.face_encoder if choice.needs_identity else None

    def forget(self, photo: Photo, choice: Choice, identity: str | None, *, checked: bool, reporter: Reporter) -> Forgotten:
        """Forget the person through the request desk. See `forgetting.forget`."""
        with self._lock:
            return forget(self.run, self.desk, photo, choice, identity, checked=checked, reporter=reporter)

    def serve_and_answer(self, forgotten: Forgotten, reporter: Reporter) -> str:
        """Record that the new model is in service, show it from now on, and return the letter to the person."""
        with self._lock:
            letter = serve_and_answer(self.desk, forgotten)
            self._use(forgotten.run, reporter)
            return letter
