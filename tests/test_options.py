"""Options: loose values to an instance, and words of a command line to loose values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from oneshui_hf.errors import UsageError, did_you_mean
from oneshui_hf.options import current_names, option, original_names, parse_words, resolve


@dataclass(frozen=True)
class Options:
    dataset: str = option(help="Must be given.", flags=("--dataset", "--data-set"))
    epochs: int = option(5, minimum=1, maximum=9)
    lr: float = option(1e-4, minimum=0)
    length: float | None = option(None, minimum=0, maximum=1)
    vary_size: bool = option(True)
    step: str = option("normalised", choices=("normalised", "raw"))
    columns: tuple[str, ...] = option(())


def made(**values: Any) -> Options:
    return resolve(Options, {"dataset": "faces", **values}, "method 'm'")


def test_defaults_are_taken() -> None:
    assert made() == Options("faces", 5, 1e-4, None, True, "normalised", ())


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        ({"epochs": "7"}, "epochs", 7),
        ({"epochs": 7.0}, "epochs", 7),
        ({"lr": "1e-3"}, "lr", 1e-3),
        ({"lr": 1}, "lr", 1.0),
        ({"length": "0.5"}, "length", 0.5),
        ({"length": None}, "length", None),
        ({"vary_size": "no"}, "vary_size", False),
        ({"vary_size": "True"}, "vary_size", True),
        ({"vary-size": False}, "vary_size", False),
        ({"--vary-size": 0}, "vary_size", False),
        ({"columns": "a, b"}, "columns", ("a, b",)),
        ({"columns": ["a", "b"]}, "columns", ("a", "b")),
        ({"data_set": "others"}, "dataset", "others"),
    ],
)
def test_values_are_converted_to_the_type_of_the_field(values: dict[str, Any], name: str, expected: object) -> None:
    value = getattr(made(**values), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": "many"}, "--epochs of method 'm' takes a whole number, not 'many'."),
        ({"epochs": 2.5}, "--epochs of method 'm' takes a whole number, not '2.5'."),
        ({"epochs": True}, "--epochs of method 'm' takes a whole number, not 'True'."),
        ({"epochs": None}, "--epochs of method 'm' takes a whole number, not 'None'."),
        ({"lr": "fast"}, "--lr of method 'm' takes a number, not 'fast'."),
        ({"vary_size": "perhaps"}, "--vary-size of method 'm' takes true or false, not 'perhaps'."),
        ({"epochs": 0}, "--epochs of method 'm' must be at least 1, not 0."),
        ({"epochs": 10}, "--epochs of method 'm' must be at most 9, not 10."),
        ({"length": 1.5}, "--length of method 'm' must be at most 1, not 1.5."),
        ({"step": "rww"}, "--step of method 'm' must be one of normalised, raw, not 'rww'. Did you mean 'raw'?"),
        ({"epoch": 1}, "method 'm' has no option --epoch. Did you mean '--epochs'?"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        made(**values)
    assert str(raised.value) == message


@pytest.mark.parametrize("value", ["nan", "inf", float("nan")])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="--lr of method 'm'"):
        made(lr=value)


@pytest.mark.parametrize("bound", [1, 9])
def test_ranges_are_inclusive(bound: int) -> None:
    assert made(epochs=bound).epochs == bound


def test_a_missing_required_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"^method 'm' needs --dataset\.$"):
        resolve(Options, {}, "method 'm'")


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--epochs", "3"], {"epochs": "3"}),
        (["--epochs=3"], {"epochs": "3"}),
        (["--dataset="], {"dataset": ""}),
        (["--dataset=a=b"], {"dataset": "a=b"}),
        (["--vary-size"], {"vary_size": True}),
        (["--no-vary-size"], {"vary_size": False}),
        (["--vary-size=false"], {"vary_size": "false"}),
        (["--vary_size", "--lr", "-1"], {"vary_size": True, "lr": "-1"}),
        (["--epochs", "3", "--epochs", "4"], {"epochs": "4"}),
    ],
)
def test_words_are_read(words: list[str], values: dict[str, Any]) -> None:
    assert parse_words(words, Options, "method 'm'") == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs"], "--epochs of method 'm' needs a value."),
        (["--epochs", "3", "more"], "method 'm' takes no argument 'more'."),
        (["-e", "3"], "method 'm' takes no argument '-e'."),
        (["--epoch", "3"], "method 'm' has no option --epoch. Did you mean '--epochs'?"),
        (["--no-epochs"], "method 'm' has no option --no-epochs. Did you mean '--epochs'?"),
    ],
)
def test_words_that_do_not_fit_are_refused_in_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_words(words, Options, "method 'm'")
    assert str(raised.value) == message


def test_a_negated_flag_takes_no_value() -> None:
    with pytest.raises(UsageError, match="--no-vary-size"):
        parse_words(["--no-vary-size=false"], Options, "method 'm'")


def test_words_know_every_spelling_that_resolve_knows() -> None:
    assert made(**parse_words(["--data-set", "others"], Options, "method 'm'")).dataset == "others"


def test_a_word_far_from_all_known_lists_them() -> None:
    assert did_you_mean("xyz", ["raw", "fine"]) == " Known: fine, raw."
    assert did_you_mean("xyz", []) == ""


@dataclass(frozen=True)
class Renamed:
    images: int = option(4, minimum=1, formerly=("photos", "pictures"))
    lr: float = option(1e-4, flags=("--lr", "--learning-rate"))


def test_earlier_names_are_read() -> None:
    assert resolve(Renamed, {"photos": "7"}, "here") == resolve(Renamed, {"--pictures": 7}, "here") == Renamed(images=7)
    assert parse_words(["--photos", "7"], Renamed, "here") == {"images": "7"}


def test_current_names_translate_stored_values_and_keep_unknown_ones() -> None:
    stored = {"photos": 7, "learning-rate": 0.1, "other": None}
    assert current_names(Renamed, stored) == {"images": 7, "lr": 0.1, "other": None}


def test_original_names_do_not_change_when_a_field_is_renamed() -> None:
    for spelling in ("photos", "pictures", "images"):
        assert original_names(Renamed, {spelling: 7, "lr": 0.1, "other": None}) == {"photos": 7, "lr": 0.1, "other": None}
