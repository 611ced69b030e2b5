"""Random search over options: the axes that an options class declares, and the values of the next trial."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import pytest

from oneshui_hf.errors import UsageError
from oneshui_hf.options import option, resolve
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.random_search import GLOBAL_TRIALS, Axis, axes, propose


@dataclass(frozen=True)
class Options:
    lr: float = option(0.01, "Rate.", search=(1e-4, 1.0))
    length: float | None = option(None, "Length.", search=(2e-5, 0.05))
    share: float = option(0.5, "Share.", minimum=0, maximum=1, search=(0.25, 1.0))
    epochs: int = option(5, "Passes.", search=(1, 10))
    tokens: bool = option(True, "Tokens.", search=True)
    distance: str = option("l1", "Distance.", choices=("l1", "l2", "both"), search=True)
    chunk: int = option(4, "Memory only.")


def test_axes_follow_the_declared_ranges() -> None:
    assert axes(Options) == {
        "lr": Axis(1e-4, 1.0),
        "length": Axis(2e-5, 0.05),
        "share": Axis(0.25, 1.0),
        "epochs": Axis(1, 10, integer=True),
        "tokens": Axis(0, 1, choices=(False, True)),
        "distance": Axis(0, 2, choices=("l1", "l2", "both")),
    }


def test_a_range_of_a_factor_of_ten_has_a_log_scale() -> None:
    found = axes(Options)
    assert found["lr"].value_at(0.5) == pytest.approx(1e-2)
    assert found["share"].value_at(0.5) == pytest.approx(0.625)
    assert [found["epochs"].value_at(position) for position in (0.0, 1.0)] == [1, 10]
    assert [found["distance"].value_at(position) for position in (0.0, 0.34, 0.99, 1.0)] == ["l1", "l2", "both", "both"]


def test_the_first_trial_has_the_defaults_and_the_others_stay_in_their_ranges() -> None:
    space = axes(Options)
    assert propose(space, 0, 0, None) == {}
    best = {"lr": 0.5, "length": None, "share": 0.3, "epochs": 3, "tokens": True, "distance": "l2"}
    proposed = [propose(space, number, 0, best) for number in range(1, 60)]
    for values in proposed:
        resolve(Options, values, "here")
        assert 1e-4 <= values["lr"] <= 1
        assert 1 <= values["epochs"] <= 10
        assert isinstance(values["epochs"], int)
    assert {values["tokens"] for values in proposed} == {True, False}
    assert {values["distance"] for values in proposed} == {"l1", "l2", "both"}


def test_every_other_trial_is_near_the_best() -> None:
    space, best = {"lr": Axis(1e-4, 1.0), "tokens": Axis(0, 1, choices=(False, True))}, {"lr": 1e-2, "tokens": True}

    def spread(numbers: range) -> tuple[float, float]:
        trials = [propose(space, number, 0, best) for number in numbers]
        return statistics.stdev(math.log10(values["lr"]) for values in trials), statistics.mean(values["tokens"] for values in trials)

    local, uniform = spread(range(GLOBAL_TRIALS + 2, 4000, 2)), spread(range(GLOBAL_TRIALS + 1, 4000, 2))
    # Four decades, and log-uniform standard deviations from a sixtieth to a sixth of them: mean square (b^2 - a^2) / (2 log(b / a)).
    assert local[0] == pytest.approx(4 * math.sqrt((1 / 36 - 1 / 3600) / (2 * math.log(10))), rel=0.1)
    assert uniform[0] == pytest.approx(4 / math.sqrt(12), rel=0.2)  # uniform over the four decades
    assert local[1] > 0.8 > 0.6 > uniform[1]


def test_a_trial_depends_only_on_seed_number_and_best() -> None:
    space = axes(Options)
    best = {"lr": 0.1, "length": 1e-3, "share": 0.5, "epochs": 2, "tokens": False, "distance": "l1"}
    assert propose(space, 6, 0, best) == propose(space, 6, 0, best)
    assert propose(space, 6, 0, best) != propose(space, 6, 1, best)
    assert propose(space, 6, 0, best) != propose(space, 8, 0, best)
    assert propose(space, 7, 0, best) == propose(space, 7, 0, None)


@pytest.mark.parametrize("name", Plugins(METHODS).names)
def test_the_declared_ranges_of_every_method_are_allowed_values(name: str) -> None:
    method = Plugins(METHODS).load(name)
    for option_name, axis in axes(method.options).items():
        for position in (0.0, 0.3, 1.0):
            try:
                method.prepare_options(name, {}, {option_name: axis.value_at(position)})
            except UsageError as error:
                pytest.fail(f"{option_name} of {name}: {error}")
