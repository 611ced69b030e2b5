"""Write a copy of a folder of photos whose label is one class for each combination of some attributes, for the methods that need classes.

python tests/studies/classes_of_attributes.py folder folder-classes Male Smiling Oval_Face
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Sequence
from pathlib import Path


def write_classes(folder: Path, output: Path, attributes: Sequence[str]) -> int:
    """Copy the photos, and write a metadata.csv with the columns file_name, identity and label.

    Args:
        folder: Photos with a metadata.csv that has the columns file_name, identity and the attributes, which are 0 or 1.
        output: The new folder.
        attributes: Names of the attributes. A photo's class is their values in this order, such as "1-0-1".

    Returns:
        The number of classes.
    """
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    output.mkdir()
    labels = ["-".join(row[name] for name in attributes) for row in rows]
    for row in rows:
        (output / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / row["file_name"], output / row["file_name"])
    with (output / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file_name", "identity", "label"))
        writer.writerows((row["file_name"], row["identity"], label) for row, label in zip(rows, labels, strict=True))
    return len(set(labels))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("attributes", nargs="+")
    given = parser.parse_args()
    print(f"{write_classes(given.folder, given.output, given.attributes)} classes in {given.output}")
