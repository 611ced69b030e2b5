"""The copy of a folder has the same photos and people, and one class for each combination of the attributes."""

from __future__ import annotations

import csv
from pathlib import Path

from classes_of_attributes import write_classes

import oneshui_hf
from support.faces import LABELS, write_photos


def test_a_photos_class_is_the_values_of_its_attributes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_photos(tmp_path / "folder", people=8, photos=2, name_of="p{}".format)
    first, second = LABELS[1], LABELS[0]
    with (tmp_path / "folder" / "metadata.csv").open(newline="") as stream:
        expected = [[row["file_name"], row["identity"], f"{row[first]}-{row[second]}"] for row in csv.DictReader(stream)]
    count = write_classes(tmp_path / "folder", tmp_path / "classes", [first, second])
    assert count == len({label for *_, label in expected}) > 1
    with (tmp_path / "classes" / "metadata.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["file_name", "identity", "label"], *expected]
    for name, *_ in expected:
        assert (tmp_path / "classes" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    found = oneshui_hf.check_data(dataset=str(tmp_path / "classes"))
    assert (found["images"], found["identities"]) == (16, 8)
