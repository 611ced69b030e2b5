"""Plugins: listed without imports, isolated when broken; the data that a method may read; options and presets that resolve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oneshui_hf.data.schema import Task
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Context, DataAccess, Method, Needs
from oneshui_hf.plugins import DATASETS, METHODS, Plugins

Install = Callable[..., None]

METHOD = """
from oneshui_hf.methods import Method, Needs
class M(Method):
    summary, paper, needs, options = "a method", "-", Needs(), object
    def apply(self, model, data, artefact, options, context): return model
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A factory of installed distributions: name, entry points, and the modules that these refer to."""
    monkeypatch.syspath_prepend(tmp_path)
    entries: list[metadata.EntryPoint] = []

    def make(distribution: str, points: dict[str, str], modules: dict[str, str], group: str = METHODS) -> None:
        info = tmp_path / f"{distribution}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        entries.extend(metadata.Distribution.at(info).entry_points)

    monkeypatch.setattr(metadata, "entry_points", lambda group: [e for e in entries if e.group == group])
    return make


def test_names_are_listed_without_import(install: Install) -> None:
    install("one", {"beta": "mod_b:M", "alpha": "mod_a:M"}, {"mod_a": "raise SystemError", "mod_b": "raise SystemError"})
    assert Plugins(METHODS).names == ["alpha", "beta"]
    assert Plugins(METHODS).origin("alpha") == "one 1.5"
    assert not {"mod_a", "mod_b"} & set(sys.modules)


def test_plugin_is_loaded_by_name(install: Install) -> None:
    install("one", {"alpha": "mod_a:M"}, {"mod_a": METHOD})
    assert issubclass(Plugins(METHODS).load("alpha"), Method)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def (:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("M = 3", ""),
        ("class M: pass", ""),
    ],
    ids=["import", "syntax", "exit", "no class", "no method"],
)
def test_broken_plugin_is_listed_with_its_distribution_and_error(install: Install, module: str, reason: str) -> None:
    install("good", {"alpha": "mod_a:M"}, {"mod_a": METHOD})
    install("bad", {"broken": "mod_b:M"}, {"mod_b": module})
    intact, broken = Plugins(METHODS).rows()
    assert intact == {
        "name": "alpha",
        "from": "good 1.5",
        "summary": "a method",
        "needs": "prepare: nothing; apply: support",
        "situation": "photo alone",
        "prepares": "never",
    }
    assert broken["name"] == "broken"
    assert broken["from"] == "bad 1.5"
    assert "bad 1.5" in broken["error"]
    assert reason in broken["error"]


def test_error_of_a_broken_plugin_names_it_and_its_distribution(install: Install) -> None:
    install("bad", {"broken": "mod_b:Absent"}, {"mod_b": METHOD})
    with pytest.raises(OneshuiError, match=r"^method 'broken' of bad 1\.5 cannot be loaded: AttributeError"):
        Plugins(METHODS).load("broken")


def test_error_names_both_packages_that_offer_one_name(install: Install) -> None:
    install("one", {"alpha": "mod_a:M"}, {"mod_a": METHOD})
    install("two", {"alpha": "mod_b:M"}, {"mod_b": METHOD})
    with pytest.raises(OneshuiError, match=r"Two packages provide 'alpha': one 1\.5 and two 1\.5; uninstall one"):
        Plugins(METHODS).names  # noqa: B018


def test_package_found_twice_is_not_a_conflict(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", {"alpha": "mod_a:M"}, {"mod_a": METHOD})
    entries = metadata.entry_points(group=METHODS)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [*entries, *entries])
    assert Plugins(METHODS).names == ["alpha"]


def test_environment_variable_selects_methods_but_not_data_sets(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", {"alpha": "a:M", "beta": "b:M", "gamma": "c:M"}, {})
    install("data", {"faces": "d:D"}, {}, group=DATASETS)
    monkeypatch.setenv("ONESHUI_PLUGINS", " gamma,alpha ,")
    assert Plugins(METHODS).names == ["alpha", "gamma"]
    assert Plugins(DATASETS).names == ["faces"]
    monkeypatch.setenv("ONESHUI_PLUGINS", "")
    assert Plugins(METHODS).names == ["alpha", "beta", "gamma"]


def test_selecting_a_plugin_that_is_not_installed_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", {"alpha": "a:M"}, {})
    monkeypatch.setenv("ONESHUI_PLUGINS", "alhpa")
    with pytest.raises(OneshuiError, match="ONESHUI_PLUGINS.*alhpa"):
        Plugins(METHODS).names  # noqa: B018


def test_unknown_name_suggests_the_nearest(install: Install) -> None:
    install("one", {"alpha": "mod_a:M"}, {"mod_a": METHOD})
    with pytest.raises(UsageError, match="^There is no method 'alpah'. Did you mean 'alpha'"):
        Plugins(METHODS).load("alpah")


def test_built_in_plugins_are_registered_as_entry_points() -> None:
    assert {"do-nothing", "gradient-ascent", "metaunlearn"} <= set(Plugins(METHODS).names)
    assert {"celeba", "folder", "synthetic"} <= set(Plugins(DATASETS).names)
    assert Plugins(METHODS).origin("metaunlearn").startswith("oneshui-hf ")
    for row in Plugins(METHODS).rows() + Plugins(DATASETS).rows():
        assert "error" not in row, row
        assert row["summary"]


def test_methods_are_listed_without_importing_torch() -> None:
    code = "import sys; from oneshui_hf.plugins import *; Plugins(METHODS).rows(); print('torch' in sys.modules)"
    own = os.environ | {"ONESHUI_PLUGINS": ",".join(Plugins(METHODS).names)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=own).stdout == "False\n"


def test_method_cannot_need_an_unknown_set() -> None:
    with pytest.raises(OneshuiError, match=r"A method cannot need \['test'\]"):
        Needs(prepare=frozenset({"train", "test"}))


def test_method_that_reads_only_support_images_is_one_shot() -> None:
    assert Needs().one_shot
    assert Needs(apply=frozenset()).one_shot
    assert not Needs(apply=frozenset({"support", "retain"})).one_shot
    assert str(Needs(prepare=frozenset({"val", "train"}))) == "prepare: train, val; apply: support"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "photo alone"),
        ({"prepares": "required", "sharded": True}, "photo alone"),
        ({"needs": Needs(apply=frozenset())}, "baseline"),
        ({"needs": Needs(apply=frozenset({"support", "retain"}))}, "training data"),
        ({"needs": Needs(apply=frozenset({"train"}))}, "training data"),
        ({"per_identity": True}, "prepared by name"),
        ({"per_identity": True, "exact": True}, "exact by design"),
        ({"exact": True, "needs": Needs(apply=frozenset({"train"}))}, "exact by design"),
    ],
)
def test_situation_follows_from_the_other_attributes(attributes: dict[str, Any], expected: str) -> None:
    method: Any = type("M", (Method,), {"needs": Needs(), **attributes})
    assert method.situation() == expected


def test_undeclared_data_cannot_be_read() -> None:
    data = DataAccess({"support": 1, "train": 2, "forget": 3}, frozenset({"support"}))
    assert data.support == 1
    with pytest.raises(OneshuiError, match="The method reads 'train' without declaring it; add it to the method's `needs`"):
        data.train  # noqa: B018
    with pytest.raises(AttributeError):
        data.tarin  # noqa: B018
    assert 2 not in vars(data).values()
    assert all(2 not in value.values() for value in vars(data).values())


@pytest.mark.parametrize("name", Plugins(METHODS).names)
def test_options_and_presets_of_a_built_in_method_resolve(name: str) -> None:
    method = Plugins(METHODS).load(name)
    assert method.prepare_options(name, {}, {}) == method.options()
    for preset in method.all_presets():
        for dataset in ("celeba", "celebahq", "mufac", "another"):
            for forget in (1, 5, 10, 20):
                values = method.preset(preset, dataset, forget)
                options = method.prepare_options(name, values, {})
                assert {key: getattr(options, key) for key in values} == values
    with pytest.raises(UsageError, match="no preset 'papre'"):
        method.preset("papre", "celeba", 5)


def test_paper_preset_depends_on_data_set_and_number_of_people() -> None:
    method = Plugins(METHODS).load("metaunlearn")
    values = [(d, f, method.preset("paper", d, f)) for d, f in (("celeba", 5), ("mufac", 5), ("mufac", 10))]
    assert [(v["eta"], v["epochs"], v["lr"]) for _, _, v in values] == [
        (0.1, 3, 1e-4),
        (1e-3, 10, 1e-2),
        (1e-3, 3, 1e-3),
    ]


def test_paper_presets_have_the_published_values() -> None:
    """The values of the comparison by De Min et al.; a change of a default must not change them."""
    expected = {
        "bad-teacher": {"epochs": 5, "lr": 1e-3, "final_lr": 1e-5, "momentum": 0.9},
        "fine-tuning": {"epochs": 5, "lr": 0.01},
        "jit": {"copies": 25, "lr": 0.01, "sigma": 0.5},
        "lfssd": {"selection": 3.5},
        "neggrad-plus": {"alpha": 0.95, "epochs": 5, "lr": 0.01},
        "pgu": {"gamma": 0.9, "lr": 0.1, "epochs": 5},
        "salun": {"mask_fraction": 0.5},
        "scrub": {"alpha": 0.001, "gamma": 0.99, "temperature": 4, "epochs": 10, "lr": 0.01, "final_lr": 5e-4, "clip": 1},
        "ssd": {"dampening": 2.0, "selection": 50},
    }
    for name, values in expected.items():
        assert Plugins(METHODS).load(name).preset("paper", "celeba", 5).items() >= values.items(), name
    without = set(Plugins(METHODS).names) - {*expected, "metaunlearn"}
    own = {"do-nothing", "drop-shard", "exact-head", "forget-keys", "gradient-ascent", "random-labels"}  # no published values
    assert without == own | {"l2ul", "mu-mis", "reference-guided", "svd-projection"}  # not in that comparison


def test_given_options_override_the_preset_which_overrides_the_defaults() -> None:
    method = Plugins(METHODS).load("metaunlearn")
    options = method.prepare_options("metaunlearn", method.preset("paper", "mufac", 5), {"epochs": "2"})
    assert (options.epochs, options.lr, options.images_per_set) == (2, 1e-2, method.options().images_per_set)


def test_option_of_preparation_is_refused_when_applying() -> None:
    method = Plugins(METHODS).load("metaunlearn")
    prepared = {"epochs": 2, "length": 1e-3}
    assert method.apply_options("metaunlearn", prepared, {"length": "2e-3"}).length == 2e-3
    assert method.apply_options("metaunlearn", prepared, {}).epochs == 2
    with pytest.raises(UsageError, match="--epochs of method 'metaunlearn' is fixed when preparing"):
        method.apply_options("metaunlearn", prepared, {"epochs": 3})


def test_options_are_read_under_their_earlier_names() -> None:
    method = Plugins(METHODS).load("metaunlearn")
    assert method.prepare_options("metaunlearn", {}, {"max-damage": "3"}).max_retain_drop == 3
    assert method.apply_options("metaunlearn", {"max_damage": 3.0}, {}).max_retain_drop == 3
    with pytest.raises(UsageError, match="--max-retain-drop of method 'metaunlearn' is fixed when preparing"):
        method.apply_options("metaunlearn", {"max_damage": 3.0}, {"max-damage": "4"})


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_each_item_of_shared_work_belongs_to_one_process(processes: int) -> None:
    shares = []
    for index in range(processes):
        accelerator: Any = SimpleNamespace(process_index=index, num_processes=processes)
        shares.append(Context(Task("multi_label", ("a",)), 0, accelerator).local_share(range(7)))
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
