"""Values of options: what text, numbers, paths and lists mean, wherever they come from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneshui_hf.errors import UsageError
from oneshui_hf.option_values import expand_home
from oneshui_hf.options import option, resolve


@dataclass(frozen=True)
class Options:
    count: int = option(1)
    share: float = option(0.5)
    flag: bool = option(False)
    text: str = option("a")
    maybe: str | None = option(None)
    limit: int | None = option(None)
    file: str | None = option(None, path=True)
    people: tuple[str, ...] = option(())
    images: tuple[str, ...] = option((), path=True)
    columns: str | None = option(None, joined=True)


def value(name: str, given: Any) -> Any:
    return getattr(resolve(Options, {name: given}, "x"), name)


def error(name: str, given: Any) -> str:
    with pytest.raises(UsageError) as raised:
        value(name, given)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 300
    assert raised.value.exit_code == 2
    return text


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        *[("count", text, 1000) for text in ("1000", "1e3", "1_000", "1000.0", " 1000 ", 1000, 1000.0, np.int64(1000), np.float32(1000))],
        ("count", "010", 10),
        ("count", np.array(3), 3),
        ("count", "9223372036854775807", 2**63 - 1),
        ("share", "1_0", 10.0),
        ("share", np.float32(0.5), 0.5),
        *[("flag", given, True) for given in (True, "true", "Yes", "on", "1", 1, np.True_)],
        *[("flag", given, False) for given in (False, "false", "NO", "off", "0", 0, np.False_)],
        ("limit", None, None),
        ("text", 12, "12"),
        ("text", np.str_("q"), "q"),
        ("people", "Jane", ("Jane",)),
        ("people", 12, ("12",)),
        ("people", np.int64(12), ("12",)),
        ("people", np.array("Jane"), ("Jane",)),
        ("file", np.array("a.png"), "a.png"),
        ("people", None, ()),
        ("people", ["a, b", 7], ("a, b", "7")),
        ("people", np.array(["a", "b"]), ("a", "b")),
        ("people", (word for word in "ab"), ("a", "b")),
        ("images", "photo.jpg", ("photo.jpg",)),
        ("images", Path("photo.jpg"), ("photo.jpg",)),
        ("images", [Path("a"), "b"], ("a", "b")),
        ("columns", ["A", "B"], "A,B"),
        ("columns", "A,B", "A,B"),
        ("columns", ["A,B"], "A,B"),
        ("columns", ["Age, in years", "B"], '"Age, in years",B'),
        ("columns", [], None),
        ("file", "google/vit-base", "google/vit-base"),
        ("file", "~nobody-here/x", "~nobody-here/x"),
        ("file", "a/~", "a/~"),
    ],
)
def test_values_that_mean_the_same_are_read_in_the_same_way(name: str, given: Any, expected: Any) -> None:
    found = value(name, given)
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, tuple):
        assert all(type(item) is str for item in found)


@pytest.mark.parametrize(
    "given", [True, np.True_, "true", "0x10", "1__0", "1.5", 1.5, np.float32(2.5), "nan", "", "1e999999999", b"1", 1j, [1]]
)
def test_whole_number_is_required(given: Any) -> None:
    assert error("count", given).startswith("--count of x ")


@pytest.mark.parametrize("given", ["9" * 5000, 10**5000, -(10**5000)], ids=["text", "positive", "negative"])
def test_numbers_of_thousands_of_digits_are_refused_in_a_short_sentence(given: Any) -> None:
    assert "takes a whole number" in error("count", given)


@pytest.mark.parametrize("given", [True, "inf", "nan", float("nan"), 10**400, "1e39", b"1", "", None, [0.5]])
def test_finite_number_is_required(given: Any) -> None:
    assert error("share", given).startswith("--share of x ")


@pytest.mark.parametrize("given", [True, 1.5, float("nan"), b"x", object(), "", "a\0b", {"a": 1}, io.StringIO("a\n"), memoryview(b"a")])
@pytest.mark.parametrize("name", ["text", "maybe", "file", "people", "images", "columns"])
def test_text_is_required(name: str, given: Any) -> None:
    assert error(name, given).startswith(f"--{name} of x ")


@pytest.mark.parametrize("given", [[None], [""], [True], [["a"]], [1.5], {"a"}, {"a": 1}, np.array([["a"]])])
@pytest.mark.parametrize("name", ["people", "images", "columns"])
def test_list_of_text_is_required(name: str, given: Any) -> None:
    assert error(name, given).startswith(f"--{name} of x ")


@pytest.mark.parametrize("name", ["count", "share", "flag", "text", "maybe", "limit", "file"])
def test_list_is_not_one_value(name: str) -> None:
    assert error(name, ["1"]) == f"--{name} of x takes one value, not a list."


@pytest.mark.parametrize("given", ["x" * 256, "a/" * 2100, "日" * 90])
@pytest.mark.parametrize("name", ["file", "images"])
def test_path_that_no_file_can_have_is_refused(name: str, given: str) -> None:
    assert error(name, given).startswith(f"--{name} of x is longer than a path can be: ")


@pytest.mark.parametrize("given", ["~/x", Path("~/x")])
def test_tilde_is_the_home_folder_in_paths_alone(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert value("file", given) == "/home/me/x"
    assert value("images", [given, "b"]) == ("/home/me/x", "b")
    assert value("text", given) == "~/x"
    assert expand_home("~") == "/home/me"


@pytest.mark.parametrize("given", ["\udcff", "a/\udce9.jpg"])
@pytest.mark.parametrize("name", ["text", "file", "images"])
def test_bytes_that_are_not_utf_8_are_refused(name: str, given: str) -> None:
    assert "bytes that are not UTF-8" in error(name, given)


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "a link that leads to itself" in error("file", f"{tmp_path}/loop{below}")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    assert value("file", f"{tmp_path}/dangling{below}") == f"{tmp_path}/dangling{below}"
