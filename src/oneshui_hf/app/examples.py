"""Generated photos to try the page with, for a run that was trained on the built-in synthetic data: nobody real is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import OneshuiError
from ..runs import SPLIT, Run
from ..stages.distributed import make_accelerator
from ..stages.run_data import RunData, open_data

GENERATED = "synthetic"  # the name of the data set


@dataclass(frozen=True)
class Example:
    """A generated photo of a forget identity.

    Attributes:
        data: The bytes of its file.
        identity: The generated identity on it.
        trained_on: Whether the model was trained on this photo. The others are support images, as new as the photo of a request.
    """

    data: bytes = field(repr=False)
    identity: str
    trained_on: bool

    @property
    def sentence(self) -> str:
        """What the photo is."""
        photo = "A photo that the model was trained on" if self.trained_on else "A photo that the model has not seen"
        return f"{photo}, of the generated identity {self.identity}, whose other photos are in the training set."


def generated_examples(run: Run) -> list[Example]:
    """Return a training photo and the support image of each forget identity of a run on generated data; none for any other run."""
    if run.record.dataset.get("name") != GENERATED or not (run.path / SPLIT).exists():
        return []
    try:
        data = open_data(run, make_accelerator())
    except OneshuiError:
        return []
    return [
        Example(photo, name, trained_on)
        for name in data.split.forget
        for part, trained_on in (("forget", True), ("support", False))
        if isinstance(photo := _first_photo(data, part, name), bytes)
    ]


def _first_photo(data: RunData, part: str, name: str) -> str | bytes | None:
    """Return the first photo of an identity in a set; None without one."""
    faces = data.sets[part]
    for number, positions in faces.positions_of.items():
        if faces.people[number] == name:
            return data.faces.encoded_image(int(faces.rows[positions[0]]))
    return None
