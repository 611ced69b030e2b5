"""Draw the figure of the README from the runs of `oneshui demo`: mAP of the original, the unlearned models and the oracle on each set.

oneshui demo
python docs/demo_figure.py demo docs/images/demo.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from oneshui_hf import plots

METHODS = ("forget-keys", "gradient-ascent", "metaunlearn")


def main(folder: Path, target: Path) -> None:
    """Write the figure of the runs in a folder."""
    runs = (folder / f"original-{method}" for method in METHODS)
    plots.scores(*runs, title="Four generated people are forgotten").save(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
