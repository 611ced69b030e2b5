"""`Run.pipeline()` sees photos as `oneshui predict` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import oneshui_hf
from oneshui_hf.errors import OneshuiError
from support.image_files import ALPHA_PNG, NOISE, chunk, encoded, exif, jpeg_with, photo, png_with, raw_png, segment

FILES = {
    "cut-out.png": ALPHA_PNG,
    "deep.png": raw_png(NOISE.astype(np.uint16) << 4, 2, 16),
    "deep-grey.png": raw_png(NOISE[..., 0].astype(np.uint16), 0, 16),
    "turned.jpg": jpeg_with(segment(0xE1, b"Exif\0\0" + exif())),
    "text.png": png_with(chunk(b"tEXt", b"k\0abc", crc=1)),
    "plain.webp": encoded(photo(), "WEBP"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> oneshui_hf.Run:
    output = tmp_path_factory.mktemp("runs") / "run"
    return oneshui_hf.train(dataset="synthetic", forget=2, epochs=1, augment="none", lr=0.05, output_dir=str(output))


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("kind", [str, Path])
def test_pipeline_and_predict_agree(run: oneshui_hf.Run, tmp_path: Path, name: str, kind: Callable[[Path], str | Path]) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    labels = len(run.record.dataset["labels"])
    theirs = {row["label"]: row["score"] for row in run.pipeline()(kind(tmp_path / name))}
    ours = run.predict([tmp_path / name], top_k=labels)[0]["predictions"]
    assert len(theirs) == len(ours) == labels
    for row in ours:
        assert theirs[row["label"]] == pytest.approx(row["probability"], abs=1e-5)


def test_pipeline_reads_images_in_memory_and_lists(run: oneshui_hf.Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(ALPHA_PNG)
    pipeline = run.pipeline()
    with Image.open(tmp_path / "a.png") as image:
        first, second = pipeline([image, image.convert("RGB")])
    assert first == pipeline(str(tmp_path / "a.png"))
    assert first != second  # the hidden colours


def test_pipeline_reports_what_is_wrong_with_a_photo(run: oneshui_hf.Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(ALPHA_PNG[:500])
    with pytest.raises(OneshuiError, match=r"a\.png is damaged or truncated"):
        run.pipeline()(str(tmp_path / "a.png"))


def test_predict_warns_about_a_photo_that_shows_nothing(
    run: oneshui_hf.Run, tmp_path: Path, oneshui: Callable[..., tuple[int, str, str]]
) -> None:
    Image.new("RGBA", (40, 40), (7, 90, 200, 0)).save(tmp_path / "a.png")
    code, _, err = oneshui("predict", run.path, tmp_path / "a.png", "--json")
    assert code == 0
    assert "a.png has nearly the same colour everywhere and may show nobody." in " ".join(err.split())
