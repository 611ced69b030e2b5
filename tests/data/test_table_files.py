"""The files of a table on disk: folders with unusual names, runs and other files below the folder, and short error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.test_identities import write_csv, write_json, write_parquet
from oneshui_hf.data.load import load_faces
from oneshui_hf.errors import OneshuiError
from support.faces import portrait

NAMES = ["set [1]", "[", "a*b", "what?", "x{1,2}", "a b", "\u00fc", "50%", "a#b", "a&b=c", "~", "!x"]


def make_run(path: Path) -> None:
    """Make a folder with the files of a run that `datasets` would take for tables and photos."""
    path.mkdir(parents=True)
    for name in ("oneshui", "split", "metrics", "preprocessor_config", "history"):
        (path / f"{name}.json").write_text("{}")
    portrait(9, 9).save(path / "figure.png")


@pytest.mark.parametrize("name", NAMES)
def test_folder_with_an_unusual_name_is_read(tmp_path: Path, name: str) -> None:
    file = write_parquet(tmp_path / name / "train-[1].parquet", ["a", "b", "a"])
    write_parquet(tmp_path / "set 1" / "train-1.parquet", ["wrong"])  # what the name means as a pattern
    for place in (file, file.parent):
        assert load_faces(str(place)).people == ["a", "b"]


def test_folder_with_two_colons_is_one_sentence(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a::b" / "t.parquet", ["a", "b"])
    table = write_csv(tmp_path / "c::d" / "faces.csv", ["a", "b"])
    other = write_csv(tmp_path / "e::f" / "metadata.csv", ["a", "b"])
    for place in (file, file.parent, table, other.parent):
        with pytest.raises(OneshuiError, match="`datasets` reads :: in a path as an address; rename the folder"):
            load_faces(str(place))


def test_folder_with_brackets_and_a_readme_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set [1]" / "data" / "train-00000-of-00001.parquet", ["a", "b", "a"])
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Faces\n"
    (tmp_path / "set [1]" / "README.md").write_text(readme)
    assert load_faces(str(tmp_path / "set [1]")).people == ["a", "b"]
    plain = (tmp_path / "set [1]").rename(tmp_path / "plain")
    assert load_faces(str(plain)).people == ["a", "b"]


@pytest.mark.parametrize("names", [["faces.parquet"], ["train.parquet", "test.parquet"], ["data/train-00000-of-00001.parquet"]])
@pytest.mark.parametrize("run", ["runs/test-seed0", "train", "data/run", "benchmarks/test"])
def test_runs_and_notes_do_not_change_a_folder_of_parquet(tmp_path: Path, names: list[str], run: str) -> None:
    for number, name in enumerate(names):
        write_parquet(tmp_path / "t" / name, ["a", "b", "a"], first=3 * number)
    before = load_faces(str(tmp_path / "t"))
    make_run(tmp_path / "t" / run)
    if run.startswith("benchmarks"):
        (tmp_path / "t" / run / "oneshui.json").rename(tmp_path / "t" / run / "benchmark.json")
        (tmp_path / "t" / run / "results.csv").write_text("a,b\n1,2\n")
    (tmp_path / "t" / "notes.txt").write_text("text")
    (tmp_path / "t" / "photo.png").write_bytes(b"")
    after = load_faces(str(tmp_path / "t"))
    assert after.fingerprint == before.fingerprint
    assert after.cache == before.cache


def test_runs_do_not_change_a_folder_of_photos_with_metadata_in_json(tmp_path: Path) -> None:
    folder = tmp_path / "t" / "train"
    folder.mkdir(parents=True)
    rows = [{"file_name": f"{number}.png", "identity": f"0{number % 2}", "Hat": number % 2} for number in range(4)]
    for number in range(4):
        portrait(number, 0).save(folder / f"{number}.png")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = load_faces(str(tmp_path / "t"))
    make_run(tmp_path / "t" / "runs" / "t-seed0")
    after = load_faces(str(tmp_path / "t"))
    assert before.people == after.people == ["00", "01"]
    assert after.cache == before.cache


def test_messages_are_short(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"")
    (tmp_path / "text.xyz").write_text("x")
    wide = write_json(tmp_path / "wide.jsonl", ["a", "b"])
    wide.write_text("\n".join(json.dumps({f"column{number}": row for number in range(500)}) for row in range(2)))
    for place in (tmp_path / "empty", broken, tmp_path / "text.xyz", wide):
        with pytest.raises(OneshuiError) as caught:
            load_faces(str(place))
        assert len(str(caught.value)) < 600, str(caught.value)
        assert "\n" not in str(caught.value)


def test_folder_that_is_a_run_itself_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "faces [1].parquet", ["a", "b", "a"])
    (tmp_path / "t" / "oneshui.json").write_text("{}")
    assert load_faces(str(tmp_path / "t" / "faces [1].parquet")).people == ["a", "b"]


def test_json_files_beside_a_parquet_table_are_no_tables(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t" / "faces.parquet", ["a", "b", "a"])
    before = load_faces(str(tmp_path / "t"))
    for name in ("split", "preset", "grid"):
        (tmp_path / "t" / f"{name}.json").write_text('{"a": 1}')
    after = load_faces(str(tmp_path / "t"))
    assert (after.people, after.cache) == (["a", "b"], before.cache)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_table_in_two_parts_has_one_cache(tmp_path: Path, suffix: str) -> None:
    for number, part in enumerate(("train", "test")):
        file = tmp_path / f"{part}.{suffix}"
        if suffix == "parquet":
            write_parquet(file, ["a", "b", "a"], first=3 * number)
        else:
            (write_csv if suffix == "csv" else write_json)(file, ["a", "b", "a"])
    assert len({load_faces(str(tmp_path)).cache for _ in range(3)}) == 1
