"""Names joined by commas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshui_hf.name_lists import join_names, match_names, split_names

AGES = ("(0, 2)", "(25, 32)", "(38,43)")


@pytest.mark.parametrize(
    ("words", "known", "names"),
    [
        (["(25, 32)"], AGES, ["(25, 32)"]),
        (["(25,32)"], AGES, ["(25, 32)"]),
        (["(38, 43)"], AGES, ["(38,43)"]),
        (["(0, 2),(25, 32)"], AGES, ["(0, 2)", "(25, 32)"]),
        (["(0, 2)", "(25, 32)"], AGES, ["(0, 2)", "(25, 32)"]),
        (["Smiling, Young"], ("Smiling", "Young"), ["Smiling", "Young"]),
        (["Smiling,,Young,"], ("Smiling", "Young"), ["Smiling", "Young"]),
        (["a, b"], ("a", "b", "a, b"), ["a, b"]),
        (["a", "b"], ("a", "b", "a, b"), ["a", "b"]),
        (['"a, b",c'], ("a", "b", "a, b", "c"), ["a, b", "c"]),
        (['5" x'], ('5" x',), ['5" x']),
        (["(25", "32)"], AGES, ["(25, 32)"]),
        ([" Young "], ("Young",), ["Young"]),
        (["Young"], (" Young", "Young"), ["Young"]),
        (["Smilling,Young"], ("Smiling", "Young"), ["Smilling", "Young"]),
        ([], AGES, []),
    ],
)
def test_names_with_commas_are_found(words: list[str], known: tuple[str, ...], names: list[str]) -> None:
    assert match_names(words, known) == tuple(names)


NAME = st.text(st.characters(blacklist_categories=("Cs", "Cc")) | st.just("\n"), min_size=1).map(str.strip).filter(bool)


@given(st.lists(NAME, min_size=2, unique=True))
def test_joined_names_are_split_again(names: list[str]) -> None:
    assert split_names(join_names(names)) == tuple(names)


@given(st.lists(NAME, min_size=1, unique=True))
def test_every_known_name_is_found_alone_and_in_a_list(names: list[str]) -> None:
    for name in names:
        assert match_names([name], names) == (name,)
    assert match_names(names, names) == tuple(names)


@given(st.text())
def test_any_text_is_split(text: str) -> None:
    assert all(name == name.strip() != "" for name in split_names(text))
    match_names([text], ["a, b", "c"])
