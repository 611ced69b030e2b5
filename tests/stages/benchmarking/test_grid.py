"""Grids: a YAML file becomes cells and methods, and every error message names file and line."""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshui_hf.data.split import published_checksum
from oneshui_hf.errors import UsageError
from oneshui_hf.options import resolve
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.results.table_columns import BUILTIN_ROWS
from oneshui_hf.stages.benchmarking.grid import Grid, read_grid
from oneshui_hf.stages.benchmarking.grid_file import builtin_grids
from oneshui_hf.stages.benchmarking.setup import with_data_dirs
from oneshui_hf.stages.command_options import EvaluateOptions, TrainOptions


def write(folder: Path, text: str) -> str:
    file = folder / "g.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def read(folder: Path, **changes: Any) -> Grid:
    """Read a small grid with some of its keys replaced; None removes a key."""
    content: dict[str, Any] = {"name": "mine", "datasets": [{"dataset": "synthetic"}], "forget": [2], "seeds": [0], "methods": ["jit"]}
    content |= changes
    return read_grid(write(folder, yaml.safe_dump({k: v for k, v in content.items() if v is not None})))


def error_of(folder: Path, **changes: Any) -> str:
    """Return the error message of a grid without its file name."""
    with pytest.raises(UsageError) as raised:
        read(folder, **changes)
    text = str(raised.value)
    assert text.startswith(str(folder / "g.yaml"))
    assert "\n" not in text
    return text.removeprefix(str(folder / "g.yaml"))


def test_cells_are_data_sets_by_request_sizes_by_seeds(tmp_path: Path) -> None:
    grid = read_grid(
        write(
            tmp_path,
            """
name: mine
datasets:
  - {dataset: synthetic, epochs: '3', learning-rate: 1e-2}
  - {name: other, dataset: synthetic, forget: [3, '1'], seeds: [7], model: tiny}
forget: [2, 4]
seeds: [0, 1]
methods: [jit]
""",
        )
    )
    assert [(cell.dataset, cell.forget, cell.seed) for cell in grid.cells] == [
        ("synthetic", 2, 0),
        ("synthetic", 2, 1),
        ("synthetic", 4, 0),
        ("synthetic", 4, 1),
        ("other", 3, 7),
        ("other", 1, 7),
    ]
    assert grid.cells[3].train == TrainOptions(dataset="synthetic", epochs=3, lr=0.01, forget=4, seed=1)
    assert grid.cells[4].train == TrainOptions(dataset="synthetic", model="tiny", forget=3, seed=7)
    assert (grid.name, grid.evaluate) == ("mine", EvaluateOptions())


def test_evaluate_section_takes_the_options_of_evaluate(tmp_path: Path) -> None:
    assert read(tmp_path, evaluate={"references": "1", "batch-size": 8}).evaluate == EvaluateOptions(references=1, batch_size=8)
    assert read(tmp_path, evaluate=None).evaluate == EvaluateOptions()


def test_grid_is_immutable_and_equal_by_value(tmp_path: Path) -> None:
    grid = read(tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.name = "x"  # type: ignore[misc]
    assert grid == read(tmp_path)


def test_path_of_a_data_set_is_never_its_name(tmp_path: Path) -> None:
    (tmp_path / "Jane Doe").mkdir()
    (tmp_path / "celeba").mkdir()
    datasets = [{"dataset": "synthetic"}, {"dataset": "Jane Doe"}, {"dataset": "jane/faces"}, {"dataset": "celeba", "data_dir": "celeba"}]
    datasets += [{"dataset": "folder", "data_dir": "Jane Doe"}, {"dataset": str(tmp_path / "Jane Doe"), "name": "ours"}]
    grid = read(tmp_path, datasets=datasets)
    assert [cell.dataset for cell in grid.cells] == ["synthetic", "data 2", "data 3", "celeba", "data 5", "ours"]
    places = [(cell.train.dataset, cell.train.data_dir) for cell in grid.cells]
    jane = str(tmp_path / "Jane Doe")
    assert places[1:5] == [(jane, None), ("jane/faces", None), ("celeba", str(tmp_path / "celeba")), ("folder", jane)]


def test_relative_paths_start_from_the_folder_of_the_file_if_they_exist_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "checkpoint").mkdir()
    (tmp_path / "grids" / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    models = ["checkpoint", "elsewhere", "tiny", "google/vit"]
    grid = read(tmp_path / "grids", datasets=[{"dataset": "synthetic", "name": name, "model": name} for name in models])
    assert [cell.train.model for cell in grid.cells] == [str(tmp_path / "grids" / "checkpoint"), *models[1:]]


def test_text_is_kept_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "011").mkdir()
    text = (
        HEAD.replace("mine", "yes")
        + "datasets:\n- {dataset: synthetic, name: 011, subset: 1.0}\n- {dataset: 011, label-columns: [no, 1e3]}\n"
    )
    grid = read_grid(write(tmp_path, text))
    assert grid.name == "yes"
    assert [cell.dataset for cell in grid.cells] == ["011", "data 2"]
    first, second = (cell.train for cell in grid.cells)
    assert (first.subset, second.dataset, second.label_columns) == ("1.0", str(tmp_path / "011"), "no,1e3")


def test_paths_are_found_in_both_spellings_and_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "faces").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    preset_file(tmp_path / "home")
    datasets = [
        {"dataset": "celeba", "name": key + place, key: place} for key in ("data-dir", "data_dir") for place in ("beside", "~/faces")
    ]
    datasets = [entry | {"name": f"d{number}"} for number, entry in enumerate(datasets)]
    grid = read(tmp_path, datasets=datasets, methods=[{"method": "jit", "preset": "~/tuned.json"}])
    assert [cell.train.data_dir for cell in grid.cells] == [str(tmp_path / "beside"), str(tmp_path / "home" / "faces")] * 2
    assert grid.methods[0].preset == str(tmp_path / "home" / "tuned.json")


def test_option_in_two_spellings_is_an_error(tmp_path: Path) -> None:
    same = "are the same option; keep one of them."
    assert same in error_of(tmp_path, datasets=[{"dataset": "synthetic", "lr": 1, "learning-rate": 2}])
    assert same in error_of(tmp_path, evaluate={"batch-size": 1, "batch_size": 2})
    assert same in error_of(tmp_path, methods=[{"method": "lfssd", "options": {"photos": 2, "--photos": 3}}])


def test_folder_of_a_data_set_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    grid = read(tmp_path, datasets=[{"dataset": "synthetic", "name": "a=b"}, {"dataset": "synthetic", "name": "a"}])
    found = with_data_dirs(grid, ["a=b=~/x", "a=y"])
    assert [cell.train.data_dir for cell in found.cells] == ["/home/me/x", "y"]


def test_all_is_every_loadable_method_that_reads_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for methods in ("all", ["all"], None):
        grid = read(tmp_path, methods=methods)
        labels = [entry.label for entry in grid.methods]
        assert labels == [name for name in Plugins(METHODS).names if name not in ("do-nothing", "drop-shard", "exact-head", "mu-mis")]
        assert all(entry.method == entry.label and not entry.options and not entry.preset for entry in grid.methods)
    monkeypatch.setenv("ONESHUI_PLUGINS", "jit,ssd,do-nothing")
    assert [entry.label for entry in read(tmp_path, methods="all").methods] == ["jit", "ssd"]
    own = read(tmp_path, methods=["all", {"method": "jit", "options": {"copies": 3}}]).methods
    assert [(entry.label, dict(entry.options)) for entry in own] == [("ssd", {}), ("jit", {"copies": 3})]
    assert [entry.label for entry in read(tmp_path, methods=["do-nothing"]).methods] == ["do-nothing"]


def test_all_includes_methods_for_sharded_models_if_all_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHUI_PLUGINS", "jit,drop-shard")
    whole, shards = {"dataset": "synthetic"}, {"dataset": "synthetic", "name": "shards", "sharded": 4}
    for datasets, found in (([shards], ["drop-shard", "jit"]), ([whole], ["jit"]), ([whole, shards], ["jit"])):
        assert [entry.label for entry in read(tmp_path, datasets=datasets, methods="all").methods] == found
    assert [entry.label for entry in read(tmp_path, methods=["drop-shard"]).methods] == ["drop-shard"]  # if the grid names it


def test_all_includes_methods_for_heads_in_closed_form_if_all_models_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHUI_PLUGINS", "jit,exact-head")
    whole, closed = {"dataset": "synthetic"}, {"dataset": "synthetic", "name": "closed", "head": "closed-form"}
    for datasets, found in (([closed], ["exact-head", "jit"]), ([whole], ["jit"]), ([whole, closed], ["jit"])):
        assert [entry.label for entry in read(tmp_path, datasets=datasets, methods="all").methods] == found


def test_all_leaves_out_methods_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONESHUI_PLUGINS", "jit,ssd")
    rows = Plugins.rows
    broken = [{"name": "pgu", "from": "x 1", "error": "cannot be loaded"}]
    monkeypatch.setattr(Plugins, "rows", lambda self: [*rows(self), *broken])
    assert [entry.label for entry in read(tmp_path, methods="all").methods] == ["jit", "ssd"]


def test_methods_run_in_the_cells_that_when_selects(tmp_path: Path) -> None:
    methods = [
        "jit",
        {"method": "ssd", "when": {"forget": 4}, "options": {"selection": "5"}},
        {"method": "ssd", "when": {"forget": "2"}, "options": {"chunk": 1}},
        {"method": "ssd", "label": "ssd, other", "when": {"dataset": "other", "forget": 2}},
    ]
    grid = read(tmp_path, datasets=[{"dataset": "synthetic"}, {"dataset": "synthetic", "name": "other"}], forget=[2, 4], methods=methods)
    found = {(cell.dataset, cell.forget): [(e.label, dict(e.options)) for e in grid.entries(cell)] for cell in grid.cells}
    assert found == {
        ("synthetic", 2): [("jit", {}), ("ssd", {"chunk": 1})],
        ("synthetic", 4): [("jit", {}), ("ssd", {"selection": 5.0})],
        ("other", 2): [("jit", {}), ("ssd", {"chunk": 1}), ("ssd, other", {})],
        ("other", 4): [("jit", {}), ("ssd", {"selection": 5.0})],
    }


def preset_file(folder: Path, **changes: Any) -> Path:
    scores = {"retain": 1.0, "forget": 1.0, "val": 1.0, "tow": 1.0}
    found = {"format": 1, "method": "jit", "values": {"copies": 3}, "scores": scores, "trials": [], "nothing": scores} | changes
    (folder / "tuned.json").write_text(json.dumps(found))
    return folder / "tuned.json"


def test_preset_is_a_name_or_a_file_next_to_the_grid(tmp_path: Path) -> None:
    file = preset_file(tmp_path)
    methods = [{"method": "jit", "preset": "paper"}, {"method": "jit", "label": "tuned", "preset": "tuned.json"}]
    assert [entry.preset for entry in read(tmp_path, methods=methods).methods] == ["paper", str(file)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ssd"}, "is a preset of method 'ssd', not of 'jit'."),
        ({"values": {"copies": 0}}, "--copies of method 'jit' in "),
        ({"scores": None}, "has worked, so it has no values"),
        ({"format": 9}, "is not a preset file that this version reads."),
    ],
)
def test_unsuitable_preset_file_is_an_error(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    preset_file(tmp_path, **changes)
    assert message in error_of(tmp_path, methods=[{"method": "jit", "preset": "tuned.json"}])


JIT = {"method": "jit"}
LONG = "x" * 41


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["jit"]}, ", line 5: a grid has no 'method'. Did you mean 'methods'?"),
        ({"name": None}, " has no 'name: NAME' line."),
        ({"name": "a|b"}, ", line 7: a name has 1 to 40 printable characters other than '|'."),
        ({"name": "../b"}, ", line 7: a name appears in published tables, and '../b' looks like a path; write a word."),
        ({"name": "a/b"}, ", line 7: the grid's name is the name of its folder, so it cannot contain '/'."),
        ({"name": ["a"]}, ", line 7: a name is text, not a list."),
        ({"datasets": None}, " has no list of data sets: 'datasets:' and a line '- dataset: NAME' for each."),
        ({"datasets": []}, " has no list of data sets: 'datasets:' and a line '- dataset: NAME' for each."),
        ({"datasets": ["synthetic"]}, "mapping with 'dataset: NAME' and options of `oneshui train`, not 'synthetic'."),
        ({"datasets": [{"epochs": 3}]}, ", line 2: a data set needs a 'dataset: NAME' line."),
        ({"datasets": [{"dataset": None}]}, ", line 2: a data set needs a 'dataset: NAME' line."),
        ({"datasets": [{"dataset": "celebba"}]}, ", line 2: 'celebba' is neither a data set nor a folder. Did you mean 'celeba'?"),
        (
            {"datasets": [{"dataset": "synthetic", "epoch": 3}]},
            ", line 3: data set 'synthetic' has no option --epoch. Did you mean '--epochs'?",
        ),
        (
            {"datasets": [{"dataset": "synthetic", "head": "closed-form", "epochs": 3}]},
            ", line 2: --epochs has no effect with --head closed-form, which trains nothing by gradients; omit it.",
        ),
        ({"datasets": [{"dataset": "synthetic", "epochs": 0}]}, ", line 3: --epochs of data set 'synthetic' must be at least 1, not 0."),
        (
            {"datasets": [{"dataset": "synthetic", "model": ["a"]}]},
            ", line 4: --model of data set 'synthetic' takes one value, not a list.",
        ),
        ({"datasets": [{"dataset": {"a": 1}}]}, ", line 3: --dataset of data set 'data 1' takes one value, not a mapping."),
        ({"datasets": [{"dataset": "synthetic", "seed": 1}]}, ", line 3: --seed does not go here: list seeds under 'seeds'."),
        ({"datasets": [{"dataset": "synthetic", "output-dir": "x"}]}, "--output-dir does not go here: the benchmark names the folders of"),
        ({"datasets": [{"dataset": "synthetic", "resume": True}]}, "--resume does not go here"),
        ({"datasets": [{"dataset": "synthetic", "overwrite": False}]}, "--overwrite does not go here"),
        ({"datasets": [{"dataset": "synthetic", "name": "a\tb"}]}, ", line 3: a name has 1 to 40 printable characters"),
        ({"datasets": [{"dataset": "synthetic", "split": "none.json"}]}, ", line 3: Split file none.json does not exist;"),
        ({"datasets": [{"dataset": "synthetic"}] * 2}, ": data set 'synthetic' with 2 forget identities and seed 0 occurs twice;"),
        ({"forget": None}, ", line 2: neither the data set nor the grid has a list 'forget'."),
        ({"forget": []}, ", line 3: 'forget' is a list of whole numbers, such as [1, 2], not an empty list."),
        ({"forget": {"a": 1}}, ", line 3: 'forget' is a list of whole numbers, such as [1, 2], not a mapping."),
        ({"forget": "five"}, ", line 3: --forget of 'forget' takes a whole number, not 'five'."),
        ({"forget": [0]}, ", line 4: --forget of 'forget' must be at least 1, not 0."),
        ({"forget": [1.5]}, "takes a whole number, not '1.5'."),
        ({"forget": [True]}, "takes a whole number, not 'true'."),
        ({"forget": [None]}, "takes a whole number, not 'null'."),
        ({"forget": [[2]]}, "--forget of 'forget' takes one value, not a list."),
        ({"forget": [2, "2"]}, ", line 3: 'forget' contains a number twice."),
        ({"seeds": [-1]}, ": --seed of 'seeds' must be at least 0, not -1."),
        ({"seeds": [2**63]}, ": --seed of 'seeds' must be at most 9223372036854775807, not 9223372036854775808."),
        ({"seeds": list(range(101)), "forget": list(range(1, 101))}, ": the grid has more than 10,000 cells;"),
        ({"methods": []}, ": 'methods' is the word all or a list of methods, not an empty list."),
        ({"methods": "jti"}, ", line 5: There is no method 'jti'. Did you mean 'jit'?"),
        ({"methods": ["jti"]}, ", line 6: There is no method 'jti'. Did you mean 'jit'?"),
        ({"methods": [7]}, ", line 6: There is no method '7'."),
        ({"methods": [["jit"]]}, ", line 6: a method is a name or a mapping with 'method: NAME', not a list."),
        ({"methods": [{"label": "x"}]}, ", line 6: a method needs a 'method: NAME' line."),
        ({"methods": [JIT | {"lable": "x"}]}, ", line 6: a method has no 'lable'. Did you mean 'label'?"),
        ({"methods": [JIT | {"options": {"copys": 1}}]}, ": method 'jit' has no option --copys. Did you mean '--copies'?"),
        ({"methods": [JIT | {"options": {"copies": 0}}]}, ": --copies of method 'jit' must be at least 1, not 0."),
        ({"methods": [JIT | {"options": {"copies": [1]}}]}, ": --copies of method 'jit' takes one value, not a list."),
        ({"methods": [JIT | {"options": ["copies"]}]}, ": the options of a method are a mapping, not a list."),
        ({"methods": [JIT | {"preset": "papers"}]}, ": The method has no preset 'papers'. Did you mean 'paper'?"),
        ({"methods": [JIT | {"preset": "none.json"}]}, ": There is no preset file none.json;"),
        ({"methods": [JIT | {"preset": 3}]}, ": The method has no preset '3'."),
        ({"methods": [JIT | {"when": "always"}]}, ": 'when' is a mapping of dataset and forget, not 'always'."),
        ({"methods": [JIT | {"when": {"forgets": 2}}]}, ": 'when' has no 'forgets'. Did you mean 'forget'?"),
        ({"methods": [JIT | {"when": {"forget": 3}}]}, ": the grid has no cell with forget '3'. Known: 2."),
        (
            {"methods": [JIT | {"when": {"dataset": "synthetc"}}]},
            ": the grid has no cell with dataset 'synthetc'. Did you mean 'synthetic'?",
        ),
        (
            {"methods": ["jit", "jit"]},
            ": two methods are called 'jit' for data set 'synthetic' with 2 forget identities; give one a label.",
        ),
        ({"methods": [JIT | {"label": "oracle"}]}, ": every table already has a row 'oracle'; give the method another label."),
        ({"methods": [JIT | {"label": "a\x07b"}]}, ": a label has 1 to 40 printable characters"),
        ({"methods": [JIT | {"label": "a\u202eb"}]}, ": a label has 1 to 40 printable characters"),
        ({"methods": [JIT | {"label": LONG}]}, ": a label has 1 to 40 printable characters"),
        ({"methods": [JIT | {"label": " "}]}, ": a label has 1 to 40 printable characters"),
        ({"evaluate": ["references"]}, ": 'evaluate' is a mapping of options of `oneshui evaluate`, not a list."),
        ({"evaluate": {"reference": 1}}, ": 'evaluate' has no option --reference. Did you mean '--references'?"),
        ({"evaluate": {"references": 9}}, ": --references of 'evaluate' must be at most 8, not 9."),
        ({"evaluate": {"oracle": "x"}}, ": --oracle does not go here: the benchmark trains its own oracles."),
        ({"evaluate": {"data_dir": "x"}}, ": --data-dir does not go here: it belongs to a data set, under 'datasets'."),
    ],
)
def test_every_error_names_its_location(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in error_of(tmp_path, **changes)


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    listed = read(tmp_path, datasets=[{"dataset": "synthetic"}], forget=[2], seeds=[0], methods=["jit"])
    assert read(tmp_path, datasets={"dataset": "synthetic"}, forget=2, seeds="0", methods="jit") == listed
    assert read(tmp_path, datasets=[{"dataset": "synthetic", "forget": 2, "seeds": 0}], methods={"method": "jit"}) == listed


def test_conditions_that_no_cell_fulfils_together_are_an_error(tmp_path: Path) -> None:
    datasets = [{"dataset": "synthetic"}, {"dataset": "synthetic", "name": "b", "forget": [4]}]
    text = error_of(tmp_path, datasets=datasets, methods=[JIT | {"when": {"dataset": "b", "forget": 2}}])
    assert "the grid has no cell with both, so the method would never run." in text


def test_split_file_determines_the_size_of_the_forget_set(tmp_path: Path) -> None:
    people = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    split = {"format": 2, "seed": 0, "people": people, "forget": ["a"], "support": {"a": "1"}, "reserved": {}, "meta_identities": "all"}
    (tmp_path / "split.json").write_text(json.dumps(split))
    dataset = {"dataset": "synthetic", "split": "split.json"}
    assert read(tmp_path, datasets=[dataset], forget=[1]).cells[0].train.split == str(tmp_path / "split.json")
    for forget in ([2], [1, 2]):
        message = "the forget set of this split has 1 identities; write 'forget: [1]' for 'synthetic'."
        assert message in error_of(tmp_path, datasets=[dataset], forget=forget)


HEAD = "name: mine\nforget: [2]\nseeds: [0]\nmethods: [jit]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " must consist of 'name: value' lines;"),
        ("- a\n- b\n", " must consist of 'name: value' lines;"),
        ("just words", " must consist of 'name: value' lines;"),
        ("a: [1\nb: 2", ", line 2, is not readable YAML: "),
        ("a: 1\n---\nb: 2", ", line 2, is not readable YAML: "),
        ("a: \x00", " is not readable YAML: "),
        ("name: !!python/object:os.system x\n", ", line 1, is not readable YAML: "),
        (HEAD + "seeds: [1]\n", ", line 5, is not readable YAML: 'seeds' is given twice."),
        (HEAD + "? [a, b]\n: 1\n", ", line 5, is not readable YAML: a key is not a word."),
        ("[" * 1000, " is nested too deeply or repeats itself too often to be a grid."),
        (HEAD + "datasets: " + "[" * 20 + "]" * 20, " is nested too deeply or repeats itself too often to be a grid."),
        (HEAD + "datasets: &a [*a]\n", " is nested too deeply or repeats itself too often to be a grid."),
        (HEAD + "datasets: [" + "1, " * 20_001 + "]\n", " is nested too deeply or repeats itself too often to be a grid."),
    ],
)
def test_text_that_is_not_a_grid_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_grid(write(tmp_path, text))
    assert str(raised.value).startswith(f"{tmp_path / 'g.yaml'}{message}")


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_expand_exponentially_are_an_error(tmp_path: Path, merge: bool) -> None:
    lines = ["a0: &a0 {k: 1}"]
    for level in range(1, 10):
        many = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} {{<<: [{many}]}}" if merge else f"a{level}: &a{level} [{many}]")
    with pytest.raises(UsageError, match="repeats itself too often"):
        read_grid(write(tmp_path, "\n".join(lines)))


def test_data_sets_can_share_a_recipe(tmp_path: Path) -> None:
    text = HEAD + "datasets:\n  - &r {dataset: synthetic, epochs: 3, lr: 0.5}\n  - {<<: *r, name: other, lr: 0.25}\n"
    grid = read_grid(write(tmp_path, text))
    assert [(c.dataset, c.train.epochs, c.train.lr) for c in grid.cells] == [("synthetic", 3, 0.5), ("other", 3, 0.25)]


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 1_000_001)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff")
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for source, message in (
        (large, "is larger than 100 kB"),
        (binary, "is not UTF-8 text"),
        (tmp_path, "is neither a file nor a built-in grid"),
        (pipe, "is neither a file nor a built-in grid"),
        ("demmo", "'demmo' is neither a file nor a built-in grid. Did you mean 'demo'?"),
    ):
        with pytest.raises(UsageError) as raised:
            read_grid(str(source))
        assert message in str(raised.value)


def test_builtin_grids_are_found_and_packaged() -> None:
    assert builtin_grids() == ["demo", "paper"]
    assert all((resources.files("oneshui_hf") / "grids" / f"{name}.yaml").is_file() for name in builtin_grids())
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert '"oneshui_hf" = ["py.typed", "grids/*.yaml"]' in pyproject


def test_demo_grid_runs_every_method_with_the_recipe_of_the_demo() -> None:
    grid = read_grid("demo")
    assert [(cell.dataset, cell.forget, cell.seed) for cell in grid.cells] == [("synthetic", 2, 0), ("synthetic", 2, 1)]
    recipe = {"epochs": 30, "batch_size": 32, "optimizer": "adamw", "lr": 1e-3, "augment": "flip", "keep": "last"}
    assert grid.cells[0].train == TrainOptions(dataset="synthetic", forget=2, seed=0, **recipe)  # type: ignore[arg-type]
    assert {entry.method for entry in grid.methods} == set(Plugins(METHODS).names) - {"do-nothing", "drop-shard", "exact-head", "mu-mis"}
    assert not {entry.label for entry in grid.methods} & set(BUILTIN_ROWS.values())
    assert grid.evaluate.references == 1


def test_paper_grid_has_the_settings_of_the_paper() -> None:
    grid = read_grid("paper")
    sizes = {(cell.dataset, cell.forget) for cell in grid.cells}
    assert sizes == {("celebahq", 20), ("celebahq", 50), ("celeba", 5), ("celeba", 10), ("mufac", 5), ("mufac", 10)}
    assert all(published_checksum(cell.dataset, cell.seed, cell.forget) for cell in grid.cells)  # published splits have a checksum
    assert {cell.train.weight_decay for cell in grid.cells if cell.dataset == "celebahq"} == {1e-3}
    assert {cell.train.weight_decay for cell in grid.cells if cell.dataset != "celebahq"} == {1e-4}
    plain = dataclasses.replace(grid.cells[0].train, dataset="-", weight_decay=1e-4, model=None, forget=5, seed=0)
    assert plain == resolve(TrainOptions, {"dataset": "-"}, "")  # everything else is the default, which is the paper's recipe
    with_paper = {name for name in Plugins(METHODS).names if "paper" in Plugins(METHODS).load(name).all_presets()}
    assert {entry.method for entry in grid.methods if entry.preset == "paper"} == with_paper
