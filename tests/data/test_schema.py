"""The index of a data set: reading a photo takes as long in a large table as in a small one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import torch

from oneshui_hf.data.schema import Faces, Task


def test_the_column_of_photos_is_made_once() -> None:
    photo = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": b"a", "path": None}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}]
    column = pa.chunked_array([rows[:1], rows[1:]], photo)
    asked: list[str] = []
    data = SimpleNamespace(column=lambda name: asked.append(name) or column)
    index = np.arange(3)
    task = Task("multi_label", ("Smiling",))
    faces = Faces("made", task, ["a", "b", "c"], index, ["p"], torch.zeros(3, 1), SimpleNamespace(data=data), index, Path())  # type: ignore[arg-type]
    assert [faces.encoded_image(row) for row in range(3)] == [b"a", "b.png", b""]
    assert asked == ["image"]
