"""Where a named data set is looked for without --data-dir."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneshui_hf.data.builders import celeba, celebahq, mufac
from oneshui_hf.data.load import load_faces, load_photo_keys
from oneshui_hf.errors import OneshuiError, UsageError
from support.recording_reporter import RecordingReporter

MakeFolder = Callable[..., Path]


def test_folders_are_searched_in_the_documented_order(celeba_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert celeba.LAYOUT.usual_folder() is None
    for name in ("work/data/celeba", "work/celeba", "sets/celeba"):
        folder = celeba_folder(name=name)
        monkeypatch.setenv("ONESHUI_DATA", str(tmp_path / "sets"))
        assert celeba.LAYOUT.usual_folder() == folder
    assert celeba.LAYOUT.locate(celeba_folder(name="given")) == tmp_path / "given"  # --data-dir has priority
    (tmp_path / "sets" / "celeba" / "identity_CelebA.txt").unlink()
    assert celeba.LAYOUT.usual_folder() == tmp_path / "work" / "celeba"  # which is complete
    for name in ("celeba", "data/celeba"):
        (tmp_path / "work" / name / "identity_CelebA.txt").unlink()
    with pytest.raises(OneshuiError, match="sets/celeba lacks identity_CelebA.txt"):
        celeba.LAYOUT.locate(None)


def test_usual_name_of_the_folder_is_found_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for home in (Path("CelebAMask-HQ"), Path("data/celebahq/CelebAMask-HQ")):
        (home / "CelebA-HQ-img").mkdir(parents=True)
        for name in ("CelebAMask-HQ-attribute-anno.txt", "CelebA-HQ-identity.txt"):
            (home / name).touch()
        assert celebahq.LAYOUT.locate(celebahq.LAYOUT.usual_folder()) == (tmp_path / home)
        (home / "CelebA-HQ-identity.txt").rename(tmp_path / "moved")


@pytest.mark.parametrize("layout", [celeba.LAYOUT, celebahq.LAYOUT, mufac.LAYOUT], ids=lambda layout: layout.name)
def test_message_names_the_places_and_the_copy_on_the_hub(layout: celeba.Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_faces(layout.name)
    places = f"$ONESHUI_DATA/{layout.name}, ./{layout.name}, ./data/{layout.name}: name its folder with --data-dir"
    assert places in str(caught.value)
    has_copy = layout.name == "celeba"
    for part in ("--dataset flwrlabs/celeba (11.7 GB, no files needed)", "`oneshui train --download`"):
        assert (part in str(caught.value)) == has_copy


def test_a_note_names_the_folder_that_was_found(celeba_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reporter = celeba_folder(people=4), RecordingReporter()
    monkeypatch.chdir(tmp_path)
    found, named = load_faces("celeba", reporter=reporter), load_faces("celeba", folder)
    assert reporter.notes == [f"Data set 'celeba' is read from {folder}, since --data-dir is not given."]
    assert (found.keys, found.fingerprint) == (named.keys, named.fingerprint)
    assert load_photo_keys("celeba") == load_photo_keys("celeba", folder)
