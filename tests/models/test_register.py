"""`import oneshui_hf` stays light, and transformers loads every run after it, in whatever order the packages are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oneshui_hf.data.preprocess import Preprocess
from oneshui_hf.models.closed_form import add_closed_form_head
from oneshui_hf.models.load import save_model
from oneshui_hf.models.sharded import wrap_backbone
from support.architectures import classifier

LIGHT = "import oneshui_hf, sys; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_model(classifier("dinov3", "multi_label"), Preprocess(32), folder / "backbone")
    save_model(wrap_backbone(classifier("vit", "multi_label"), 32, 2, 2, seed=0), Preprocess(32), folder / "sharded")  # type: ignore[arg-type]
    save_model(add_closed_form_head(classifier("vit", "multi_label"), 32, mirrored=True), Preprocess(32), folder / "closed_form")  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize(
    "imports",
    [
        f"{LIGHT}; from transformers import pipeline",
        *(
            pytest.param(text, marks=pytest.mark.slow)
            for text in (
                "from transformers import pipeline; import oneshui_hf",
                "import transformers, oneshui_hf; pipeline = transformers.pipeline",
                "import oneshui_hf.models.sharded; from transformers import pipeline",
                "import oneshui_hf.models.backbone; from transformers import AutoModelForImageClassification, pipeline",
            )
        ),
    ],
)
@pytest.mark.slow
def test_pipeline_loads_runs_after_import(imports: str, runs: Path) -> None:
    code = (
        f"{imports}\n"
        "from PIL import Image\n"
        "for name in ('backbone', 'sharded', 'closed_form'):\n"
        f"    found = pipeline('image-classification', model={str(runs)!r} + '/' + name)(Image.new('RGB', (20, 20)))\n"
        "    assert len(found) == 5, found\n"
        "import sys\n"
        "assert not [f for f in sys.meta_path if 'oneshui' in type(f).__module__], 'the finder was left behind'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
