"""`oneshui data` on the command line: what is printed, what is written, exit codes, and one sentence for every error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.commands import Oneshui, sentence
from support.faces import portrait

MakeFolder = Callable[..., Path]


def test_check_prints_the_same_findings_as_text_and_as_json(oneshui: Oneshui, photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=6, photos=3)
    (folder / "p01/0.png").write_bytes(b"")
    (folder / "p02/1.png").unlink()
    portrait(9, 9).save(folder / "new.png")
    code, out, err = oneshui("data", "check", "--dataset", folder)
    assert code == 0, err
    assert "photos: 16 images of 6 identities, 2 to 3 each (median 3)." in out
    assert "p01/0.png is not an image that can be read" in out
    assert "No finding would break a run" in out
    code, out, _ = oneshui("data", "check", "--dataset", folder, "--json")
    report = json.loads(out)
    assert (code, report["images"], report["identities"]) == (0, 16, 6)
    assert [item["photo"] for item in report["unreadable"]] == ["p01/0.png"]
    assert (report["rows_without_image"], report["images_without_row"]) == (["p02/1.png"], ["new.png"])
    assert report["breaks"] == []


def test_check_fails_for_data_that_cannot_be_used_and_prints_all_findings(oneshui: Oneshui, photo_folder: MakeFolder) -> None:
    folder = photo_folder(people=2, photos=3)
    code, out, err = oneshui("data", "check", "--dataset", folder)
    assert code == 1
    assert "6 images of 2 identities" in out
    assert sentence(err) == "Error: 2 people are too few to split by identity: no person remains for test."
    code, out, err = oneshui("data", "check", "--dataset", folder, "--json")
    assert code == 1
    assert json.loads(out)["breaks"] == ["2 people are too few to split by identity: no person remains for test."]


def test_check_finds_duplicates_across_the_sets_of_a_split(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder, file = photo_folder(people=8, photos=3), tmp_path / "split.json"
    assert oneshui("data", "split", "--dataset", folder, "--forget", 1, "--output", file)[0] == 0
    split = json.loads(file.read_text())
    support_image, other = next(iter(split["support"].values())), f"{split['people']['test'][0]}/0.png"
    (folder / other).write_bytes((folder / support_image).read_bytes())
    report = json.loads(oneshui("data", "check", "--dataset", folder, "--split", file, "--json")[1])
    assert [sorted(group["sets"]) for group in report["duplicates_across_sets"] if support_image in group["photos"]] == [
        ["support", "test"]
    ]


def test_split_is_deterministic(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder = photo_folder(people=10, photos=4)
    files = [tmp_path / name for name in ("one.json", "two.json", "other.json")]
    for file, seed in zip(files, (3, 3, 4), strict=True):
        words = ["--seed", seed, "--forget", 2, "--reserve-supports", 1, "--meta-identities", "disjoint"]
        code, out, err = oneshui("data", "split", "--dataset", folder, *words, "--output", file, "--json")
        assert code == 0, err
        assert json.loads(out)["published"] is False
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    split = json.loads(files[0].read_text())
    assert (len(split["forget"]), len(split["reserved"]), split["meta_identities"]) == (2, 1, "disjoint")


def test_split_uses_annotated_or_existing_photos(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder, before, after = photo_folder(people=10, photos=4), tmp_path / "before.json", tmp_path / "after.json"
    oneshui("data", "split", "--dataset", folder, "--forget", 2, "--output", before)
    for photo in (folder / "p03").iterdir():
        photo.unlink()
    oneshui("data", "split", "--dataset", folder, "--forget", 2, "--output", after)
    assert after.read_bytes() == before.read_bytes()
    oneshui("data", "split", "--dataset", folder, "--forget", 2, "--rows", "present", "--output", after, "--overwrite")
    people = [person for members in json.loads(after.read_text())["people"].values() for person in members]
    assert sorted(people) == [f"p{number:02d}" for number in range(10) if number != 3]


@pytest.mark.slow
def test_published_split_is_recognised(oneshui: Oneshui, assets: Path, tmp_path: Path) -> None:
    words = ["--dataset", "mufac", "--data-dir", assets / "annotations", "--seed", 1, "--output", tmp_path / "split.json", "--json"]
    code, out, err = oneshui("data", "split", *words, "--forget", 10)
    assert (code, json.loads(out)["published"], err) == (0, True, "")
    faces = ["--dataset", "celeba", "--data-dir", assets / "faces", "--output", tmp_path / "other.json", "--json"]
    code, out, err = oneshui("data", "split", *faces)
    assert (code, json.loads(out)["published"]) == (0, False)
    assert "not the published split" in err


def test_training_on_a_split_with_missing_photos(oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path) -> None:
    folder, file = photo_folder(people=12, photos=4), tmp_path / "split.json"
    oneshui("data", "split", "--dataset", folder, "--forget", 2, "--output", file)
    forget_identity, lost = next(iter(json.loads(file.read_text())["support"].items()))
    (folder / lost).write_bytes(b"no photo")
    words = ["--model", "tiny", "--image-size", 32, "--epochs", 1, "--output-dir", tmp_path / "run"]
    code, _, err = oneshui("train", "--dataset", folder, "--split", file, *words)
    assert code == 0, err
    assert f"1 of 48 photos of 'photos' cannot be read and are excluded: photo {lost} is not an image" in err
    assert "1 of 2 forget identities lack the support photo and are excluded." in err
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert forget_identity not in [*kept["forget"], *kept["people"]["train"]]
    assert oneshui("evaluate", "--run", tmp_path / "run", "--json")[0] == 0


@pytest.mark.parametrize("words", [["--forget", 3], ["--reserve-supports", 9], ["--meta-identities", "disjoint"]])
def test_options_that_contradict_the_split_are_an_error(
    oneshui: Oneshui, photo_folder: MakeFolder, tmp_path: Path, words: list[object]
) -> None:
    folder, file = photo_folder(people=12, photos=4), tmp_path / "split.json"
    oneshui("data", "split", "--dataset", folder, "--forget", 2, "--output", file)
    train = ["train", "--dataset", folder, "--split", file, "--model", "tiny", "--image-size", 32, "--output-dir", tmp_path / "run"]
    code, _, err = oneshui(*train, *words)
    assert code == 2
    assert f"{words[0]} {words[1]} differs from the" in sentence(err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["check"], 2, "data check needs --dataset"),
        (["check", "--dataset", "celebra"], 2, "Did you mean 'celeba'?"),
        (["check", "--dataset", "mufac", "--data-dir", "FOLDER", "--subset", "clean"], 2, "it has cleaned and published"),
        (["check", "--dataset", "synthetic", "--subset", "all"], 2, "has no subsets; omit --subset"),
        (["check", "--dataset", "FOLDER", "--fixed-labels", "Mael"], 2, "--fixed-labels names 'Mael'"),
        (["check", "--dataset", "FOLDER", "--split", "/nowhere.json"], 2, "Split file /nowhere.json does not exist"),
        (["check", "--dataset", "FOLDER", "--split", "FOLDER/metadata.csv"], 1, "is not JSON"),
        (["check", "--dataset", "FOLDER", "--identity-column", "who"], 2, "has no column 'who'"),
        (["check", "--dataset", "FOLDER", "--image-column", "foto"], 2, "has no column 'foto'"),
        (["check", "--dataset", "FOLDER", "--label-columns", "Smilling"], 2, "Did you mean 'Smiling'?"),
        (["check", "--dataset", "FOLDER/p00"], 1, "a level too low; name FOLDER instead"),
        (["check", "--dataset", "folder"], 2, "Name the folder to read: --dataset PATH"),
        (["split", "--dataset", "FOLDER", "--forget", "99"], 2, "--forget 99 is more than"),
        (["split", "--dataset", "FOLDER", "--forget", "0"], 2, "must be at least 1"),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--reserve-supports", "99"], 2, "--reserve-supports 99 is more than"),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--meta-identities", "non"], 2, "must be one of all, disjoint"),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--rows", "some"], 2, "must be one of all, present"),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--seed", "x"], 2, "seed"),
        (
            ["split", "--dataset", "FOLDER", "--forget", "1", "--output", "FOLDER/metadata.csv"],
            2,
            "exists; name another file with --output",
        ),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--output", "FOLDER"], 2, "is a folder; name a file with --output."),
        (["split", "--dataset", "FOLDER", "--forget", "1", "--output", "FOLDER/metadata.csv/x"], 2, "is a file; name another"),
        (["push", "USER/NAME"], 2, "data push needs --dataset"),
        (["push", "--dataset", "FOLDER"], 2, "data push needs REPO_ID"),
        (["push", "USER/NAME", "--dataset", "FOLDER"], 2, "You are not logged in"),
    ],
)
def test_invalid_arguments_are_one_sentence(oneshui: Oneshui, photo_folder: MakeFolder, words: list[str], code: int, expected: str) -> None:
    folder = photo_folder(people=6, photos=3)
    before = sorted(folder.rglob("*"))
    found, out, err = oneshui("data", *(word.replace("FOLDER", str(folder)) for word in words))
    assert (found, out) == (code, "")
    assert expected.replace("FOLDER", str(folder)) in sentence(err)
    assert sorted(folder.rglob("*")) == before
