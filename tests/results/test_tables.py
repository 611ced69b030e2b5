"""Tables of a benchmark: means, intervals, marks at the noise floor, and complete texts."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from scipy import stats

from oneshui_hf.metrics.collapse import EXPLANATION
from oneshui_hf.results.aggregate import Group, Line, summarise
from oneshui_hf.results.table_columns import BUILTIN_ROWS, COLUMNS
from oneshui_hf.results.tables import costs_csv, latex, markdown, terminal_tables, tidy_csv

FLOOR = {"retain": 1.0, "forget": 2.0, "val": 1.0, "test": 1.5, "tow": 96.0, "gap_closure": 0.25, "auc_either_way": 0.53, "oracles": 1}


def metrics(forget: float = 80.0, tow: float | None = 90.0, gap: float | None = 0.0, auc: float = 0.75, **more: Any) -> dict[str, Any]:
    sets = {
        name: {"images": 4, "people": 2, "loss": 0.5, "map": score}
        for name, score in (("retain", 95.0), ("forget", forget), ("test", 60.0))
    }
    attack = {"auc": auc, "interval": [auc - 0.0625, auc + 0.0625], "auc_either_way": max(auc, 1 - auc), "balanced_accuracy": 0.5}
    attack |= {"tpr": {"0.001": None, "0.1": 0.25, "0.01": 0.125}, "smallest_fpr": 0.01, "direction": "0.5 is ideal"}
    return {
        "score": "map",
        **sets,
        "intervals": {"level": 0.95, "forget": {"map": [forget - 4, forget + 2]}, "tow": [tow - 2, tow + 2] if tow else None},
        "tow": tow,
        "gap_closure": gap,
        "attacks": {"strongest": "loss", "loss": attack},
        "noise_floor": FLOOR,
        **more,
    }


def row(kind: str, seed: int = 0, label: str = "", reads: Sequence[str] = ("support",), **measured: Any) -> dict[str, Any]:
    about = {"dataset": "synthetic", "forget": 4, "seed": seed, "row": kind, "method": label or kind, "reads": list(reads)}
    return about | {"state": "done", "reason": None, "metrics": metrics(**measured), "cost": {"apply_s": 0.5, "prepare_s": None}}


def failed(seed: int, label: str, reads: Sequence[str] = ("support",)) -> dict[str, Any]:
    return row("method", seed, label, reads) | {"state": "failed", "reason": "It did not work.", "metrics": None, "cost": None}


def only(rows: Sequence[Mapping[str, Any]]) -> Group:
    (group,) = summarise(rows)
    return group


def line(group: Group, label: str) -> Line:
    (found,) = [line for line in group.lines if line.label == label]
    return found


def test_mean_over_seeds_has_students_interval() -> None:
    tows = [90.0, 93.0, 87.5]
    value = line(only([row("method", seed, "a", tow=tow) for seed, tow in enumerate(tows)]), "a").values["tow"]
    low, high = stats.t.interval(0.95, 2, np.mean(tows), stats.sem(tows))
    assert (value.mean, value.seeds) == (pytest.approx(270.5 / 3, abs=1e-12), 3)
    assert (value.low, value.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_single_seed_has_the_interval_over_people() -> None:
    values = line(only([row("method", 0, "a", forget=70.0, auc=0.25)]), "a").values
    assert (values["forget"].mean, values["forget"].low, values["forget"].high) == (70.0, 66.0, 72.0)
    assert (values["retain"].low, values["retain"].high) == (None, None)
    assert (values["attack"].mean, values["attack"].low, values["attack"].high) == (0.75, 0.6875, 0.8125)  # in the opposite direction


def test_interval_that_does_not_contain_the_best_direction_auc_is_omitted() -> None:
    measured = row("method", 0, "a", auc=0.75)
    measured["metrics"]["attacks"]["loss"]["auc_either_way"] = 0.5
    value = line(only([measured]), "a").values["attack"]
    assert (value.mean, value.low, value.high) == (0.5, None, None)


@pytest.mark.parametrize(
    ("measured", "within", "beyond"),
    [
        ("forget", 78.0, 77.9375),  # 80 less the floor of 2, and a little less
        ("tow", 94.0, 94.0625),  # ToW of the other oracle is 96, so the floor is 4
        ("gap", -0.25, 0.265625),
        ("auc", 0.72, 0.71),  # 0.03 below doing nothing, and more
    ],
)
def test_marks_at_the_boundary_of_the_noise_floor(measured: str, within: float, beyond: float) -> None:
    column = {"gap": "gap_closure", "auc": "attack"}.get(measured, measured)
    base = row("original", auc=0.75)
    for number, expected in ((within, True), (beyond, False)):
        group = only([base, row("method", 0, "a", **{measured: number})])
        assert line(group, "a").values[column].within_floor is expected
        assert line(group, "do nothing").values[column].within_floor is None


def test_differences_are_paired_by_seed() -> None:
    # Doing nothing is missing for seed 1, where the method is far from its value for seed 0.
    rows = [row("original", 0, forget=80.0), row("method", 0, "a", forget=79.0), row("method", 1, "a", forget=40.0)]
    assert line(only(rows), "a").values["forget"].within_floor is True
    # The means over seeds are equal; the first pair differs by 10.
    rows = [row("original", 0, forget=80.0), row("original", 1, forget=70.0)]
    rows += [row("method", 0, "a", forget=70.0), row("method", 1, "a", forget=80.0)]
    assert line(only(rows), "a").values["forget"].within_floor is True


def test_noise_floor_is_the_mean_difference_over_seeds() -> None:
    other = FLOOR | {"tow": 98.0, "retain": 3.0, "gap_closure": None, "auc_either_way": 0.49}
    group = only([row("original", 0), row("original", 1, noise_floor=other), row("oracle", 1, noise_floor=other)])
    assert group.floor == pytest.approx({"retain": 2.0, "forget": 2.0, "test": 1.5, "tow": 3.0, "gap_closure": 0.25, "attack": 0.02})


def test_noise_floor_is_a_line() -> None:
    floor = line(only([row("original"), row("method", 0, "a")]), "noise floor")
    found = {column: (value.mean, value.difference) for column, value in floor.values.items() if value.mean is not None}
    assert found == {
        "retain": (1.0, True),
        "forget": (2.0, True),
        "test": (1.5, True),
        "tow": (96.0, False),
        "gap_closure": (0.25, True),
        "attack": (pytest.approx(0.53), False),
    }
    measured = line(only([row("original"), row("floor", forget=62.0)]), "noise floor")  # a measured row replaces it
    assert (measured.values["forget"].mean, measured.values["forget"].difference) == (62.0, False)


def test_without_references_nothing_is_marked_and_nothing_is_bold() -> None:
    rows = [row("original", noise_floor=None), row("method", 0, "a", tow=99.0, noise_floor=None)]
    group = only(rows)
    assert group.floor == {}
    assert line(group, "a").values["tow"].within_floor is None
    assert not line(group, "a").best
    assert "The noise floor is unknown" in markdown([group])
    assert "**" not in markdown([group])


def test_lines_are_sorted() -> None:
    rows = [
        row("method", 0, "reads all", ("retain", "forget"), tow=99.5),
        row("method", 0, "reads some", ("retain",), tow=99.7),
        row("method", 0, "low", tow=91.0),
        row("method", 0, "b high", tow=95.0),
        row("method", 0, "a high", tow=95.0),
        row("method", 0, "unknown", tow=None),
        failed(0, "broken"),
        row("oracle", tow=100.0),
        row("floor", tow=96.0),
        row("original"),
    ]
    labels = [line.label for line in only(rows).lines]
    own = ["do nothing", "noise floor", "oracle"]
    assert labels == [*own, "a high", "b high", "low", "broken", "unknown", "reads some", "reads all"]


def test_method_that_returns_the_original_has_no_row_of_its_own() -> None:
    """Every table has the row "do nothing" with the same numbers. results.csv keeps all rows."""
    rows = [row("original", seed, tow=80.0 + seed) for seed in (0, 1)]
    rows += [row("method", seed, "do-nothing", (), tow=80.0 + seed) for seed in (0, 1)]
    rows += [row("method", seed, "reads", tow=80.0 + seed) for seed in (0, 1)]  # equal numbers are this method's result
    rows += [row("method", seed, "other", (), tow=80.0 + 2 * seed) for seed in (0, 1)]  # differs for one seed
    group = only(rows)
    assert [line.label for line in group.lines] == ["do nothing", "noise floor", "other", "reads"]
    assert "do-nothing" not in markdown([group]) + latex([group])
    assert "do-nothing" in tidy_csv(rows)
    alone = only([row("method", 0, "do-nothing", (), tow=80.0)])  # the original has not run yet
    assert [line.label for line in alone.lines] == ["noise floor", "do-nothing"]
    broken = only([row("original"), failed(0, "do-nothing", ())])
    assert [line.label for line in broken.lines] == ["do nothing", "noise floor", "do-nothing"]


@pytest.mark.parametrize(
    ("tow", "reads", "best"),
    [
        (94.5, ("support",), True),
        (94.0, ("support",), False),
        (80.0, ("support",), False),
        (94.5, ("support", "retain"), False),
        (94.5, (), True),
    ],
)
def test_best_line_is_above_the_noise_floor_and_reads_the_support_image_alone(tow: float, reads: tuple[str, ...], best: bool) -> None:
    group = only([row("original"), row("method", 0, "a", reads, tow=tow), row("method", 0, "b", tow=70.0)])
    assert line(group, "a").best is best
    assert not line(group, "b").best


def test_method_that_failed_for_a_seed_is_not_the_best() -> None:
    rows = [row("original", 0), row("original", 1), row("method", 0, "a", tow=99.0), failed(1, "a")]
    rows += [row("method", seed, "b", tow=97.0) for seed in (0, 1)]
    group = only(rows)
    assert (line(group, "a").best, line(group, "b").best) == (False, True)


def test_failed_rows_are_shown_with_the_number_of_valid_seeds() -> None:
    rows = [row("original", seed) for seed in range(3)]
    rows += [row("method", 0, "a", tow=93.0), failed(1, "a"), row("method", 2, "a", tow=93.0)]
    rows += [failed(seed, "b") for seed in range(3)]
    group = only(rows)
    assert (line(group, "a").done, line(group, "a").seeds, line(group, "a").values["tow"].mean) == (2, 3, 93.0)
    assert line(group, "b").done == 0
    text = markdown([group])
    assert "| a (2 of 3 seeds) | 95.0† |" in text
    assert "| b (0 of 3 seeds) | failed | - | - | - | - | - |" in text
    assert "-: unknown" not in text  # the dashes of a failed row need no explanation


def test_number_unknown_for_one_seed_is_unknown() -> None:
    value = line(only([row("method", 0, "a", gap=0.5), row("method", 1, "a", gap=None)]), "a").values["gap_closure"]
    assert value.mean is None
    assert "-: unknown for at least one seed." in markdown(summarise([row("original", 0, gap=0.0), row("method", 0, "a", gap=None)]))


def test_stopped_relearning_is_a_lower_bound() -> None:
    found = {"steps": 20, "at_most": 100}
    rows = [row("original", seed, relearning=found) for seed in (0, 1)]
    rows += [row("method", 0, "a", relearning=found), row("method", 1, "a", relearning={"steps": None, "at_most": 100})]
    group = only(rows)
    value = line(group, "a").values["relearning"]
    assert (value.mean, value.at_least, value.low) == (60.0, True, None)
    assert "| ≥ 60 |" in markdown([group])
    assert "relearning was stopped" in markdown([group])
    assert not line(group, "do nothing").values["relearning"].at_least


def test_columns_without_a_value_are_omitted() -> None:
    assert only([row("original")]).columns == ("retain", "forget", "test", "tow", "gap_closure", "attack")
    rmia = {"strongest": "rmia", "rmia": {"auc": 0.5, "interval": [0.25, 0.75], "auc_either_way": 0.5}}
    group = only([row("original", attacks=rmia)])
    assert group.columns[-1] == "rmia"
    assert (line(group, "do nothing").values["rmia"].low, line(group, "do nothing").values["rmia"].high) == (0.25, 0.75)
    assert only([row("original", attacks=None, tow=None, gap=None)]).columns == ("retain", "forget", "test", "tow")


def test_secondary_columns_are_for_a_second_table() -> None:
    measured = {"to_oracle": {"forget": {"jensen_shannon": 0.04, "loss_gap": -0.2}}, "probe": {"balanced_accuracy": 75.0, "people": 4}}
    group = only([row("original", **measured), row("method", 0, "a", **measured | {"to_oracle": {"forget": {"jensen_shannon": 0.03}}})])
    assert group.secondary == ("jensen_shannon", "loss_gap", "tpr_10", "tpr_1", "probe")
    assert not set(group.secondary) & set(group.columns)
    values = line(group, "do nothing").values
    assert [values[column].mean for column in group.secondary] == [0.04, -0.2, 25.0, 12.5, 75.0]
    assert (values["probe"].note, values["attack"].note) == ("chance 25 %", "loss")
    assert line(group, "a").values["jensen_shannon"].within_floor is None
    floor = {"noise_floor": FLOOR | {"jensen_shannon": 0.0125}}
    group = only(
        [row("original", **measured, **floor), row("method", 0, "a", **measured | {"to_oracle": {"forget": {"jensen_shannon": 0.03}}})]
    )
    assert line(group, "a").values["jensen_shannon"].within_floor is True
    assert line(group, "noise floor").values["jensen_shannon"].mean == 0.0125


def test_note_that_seeds_do_not_share_is_omitted() -> None:
    other = {"strongest": "rmia", "rmia": {"auc": 0.8, "auc_either_way": 0.8}}
    assert line(only([row("method", 0, "a"), row("method", 1, "a", attacks=other)]), "a").values["attack"].note == ""


def test_one_person_has_the_plain_auc() -> None:
    measured = row("method", 0, "a", auc=0.25)
    measured["metrics"]["attacks"]["loss"] |= {"auc_either_way": None, "interval": None}
    assert line(only([measured]), "a").values["attack"].mean == 0.25


def test_value_by_definition_has_no_interval() -> None:
    original = row("original")
    original["metrics"]["intervals"]["gap_closure"] = [0.0, 0.0]
    value = line(only([original]), "do nothing").values["gap_closure"]
    assert (value.mean, value.low, value.high) == (0.0, None, None)


# Collapse

RETAIN_LOW: dict[str, Any] = {"retain": {"images": 4, "people": 2, "loss": 0.5, "map": 84.0}}  # 11 points below the original


def test_collapsed_model_is_marked_in_every_table_and_is_not_the_best() -> None:
    rows = [row("original"), row("oracle", tow=100.0), row("method", 0, "a", tow=99.0, **RETAIN_LOW), row("method", 0, "b", tow=97.0)]
    group = only(rows)
    assert [(one.label, one.collapsed, one.best) for one in group.lines if one.row == "method"] == [("a", True, False), ("b", False, True)]
    assert "| a‡ | 84.0 |" in markdown([group])
    assert markdown([group]).count(EXPLANATION) == 1
    assert "\na$^{\\ddagger}$ & 84.0" in latex([group])
    assert r"\caption{" in latex([group])
    assert r"$^{\ddagger}$: collapsed." in latex([group])
    [terminal] = terminal_tables([group])
    assert [cells[0] for cells in terminal["rows"]] == ["do nothing", "noise floor", "oracle", "a‡", "b"]
    assert terminal["note"] == EXPLANATION
    read = list(csv.DictReader(io.StringIO(tidy_csv(rows))))
    assert {(line["method"], line["collapsed"]) for line in read} == {("a", "1"), ("b", "0"), ("do nothing", "0"), ("oracle", "0")}
    drops = {line["method"]: (line["value"], line["set"]) for line in read if line["metric"] == "collapse.drop" and line["set"] == "retain"}
    assert drops["a"] == ("11", "retain")


def test_without_a_collapsed_model_nothing_is_marked() -> None:
    group = only([row("original"), row("method", 0, "a", tow=99.0)])
    assert "‡" not in markdown([group]) + latex([group])
    assert terminal_tables([group])[0]["note"] == ""


def test_collapse_for_one_seed_is_marked() -> None:
    rows = [row("original", 0), row("original", 1), row("method", 0, "a", tow=99.0), row("method", 1, "a", tow=99.0, **RETAIN_LOW)]
    assert (line(only(rows), "a").collapsed, line(only(rows), "a").best) == (True, False)


def test_stored_collapse_is_used_and_that_of_earlier_versions_follows_from_the_rows() -> None:
    stored = {"retain": {"drop": 0.0, "limit": 5.0}, "test": {"drop": 9.0, "limit": 5.0}, "collapsed": True}
    assert line(only([row("original"), row("method", 0, "a", collapse=stored)]), "a").collapsed
    low = row("method", 0, "a", **RETAIN_LOW)
    assert not line(only([low]), "a").collapsed  # the original is unknown
    assert not line(only([row("original", 1), low]), "a").collapsed  # that of another seed is no baseline
    assert not line(only([row("original"), row("oracle", **RETAIN_LOW), low]), "a").collapsed  # retraining costs as much
    assert line(only([row("original"), row("oracle"), low]), "a").collapsed
    assert not line(
        only([row("original", noise_floor=None), row("method", 0, "a", noise_floor=FLOOR | {"retain": 11.0}, **RETAIN_LOW)]), "a"
    ).collapsed


# Measurements of later versions


def owner(rank: float) -> dict[str, Any]:
    ranks = {"rank": rank, "candidates": 36, "people": 4, "intervals": {"rank": [rank - 0.5, rank + 0.5]}}
    return {"owner": ranks, "photos": {"retain": {"auc": 0.75, "interval": [0.5, 0.875]}}}


def group(label: int, name: str | None) -> dict[str, Any]:
    people = {"people_with": 4, "people_without": 5}
    ends = {"interval": [0.125, 0.375], "p_value": 0.75, "differs": False, "oracle": 0.5}
    return {"label": label, "name": name, "difference": 0.25} | people | ends


GROUPS = [group(39, None), group(20, "Male")]
DIFFERENCE = {"outputs": {"loss_rise": owner(1.5), "logit_distance": owner(2.5)}, "weights": owner(3.5), "oracle": {"weights": owner(9.0)}}
MEASURED: dict[str, Any] = {
    "difference": DIFFERENCE,
    "person_level": {"auc": 0.625, "interval": [0.5, 0.75], "oracle": {"auc": 0.5}},
    "bystanders": {"retain": {"loss_change": {"worst_tenth": 0.25}}, "groups": {"retain": GROUPS, "left_out": 38}},
    "further": {
        "few_shot_relearning": {
            "people": 4,
            "unlearned": {"recovery": 0.125, "interval": [0.0, 0.25], "lr": 1e-5},
            "oracle": {"recovery": 0.5},
            "excess": {"value": 0.0625, "interval": [-0.5, 0.5]},
        },
        "quantization": {"int8": {"gap_closure": 0.875, "gap_closure_interval": [0.75, 1.0], "unlearned": {"forget": 50.5}}},
        "representation": {"forget": {"unlearned": {"cka": [1.0, 0.5]}}},
        "inversion": None,
        "not_run": {"inversion": "a reason"},
    },
}


def test_new_measurements_are_secondary_columns_and_unknown_in_earlier_rows() -> None:
    group = only([row("original"), row("method", 0, "a", **MEASURED), row("method", 0, "earlier")])
    assert group.secondary[-4:] == ("person_level", "owner_outputs", "owner_weights", "bystanders")
    values = line(group, "a").values
    assert [values[column].mean for column in group.secondary[-4:]] == [0.625, 1.5, 3.5, 0.25]
    assert (values["owner_weights"].low, values["owner_weights"].high, values["owner_weights"].note) == (3.0, 4.0, "of 36")
    assert [line(group, "earlier").values[column].mean for column in group.secondary[-4:]] == [None] * 4
    assert not {"person_level", "owner_outputs"} & set(only([row("original"), row("method", 0, "earlier")]).secondary)


def test_tidy_csv_lists_new_measurements_with_their_intervals() -> None:
    read = list(csv.DictReader(io.StringIO(tidy_csv([row("original"), row("method", 0, "a", **MEASURED)]))))
    found = {line["metric"]: (line["value"], line["low"], line["high"]) for line in read if line["method"] == "a"}
    assert found["difference.outputs.logit_distance.owner.rank"] == ("2.5", "2", "3")
    assert found["difference.weights.photos.retain.auc"] == ("0.75", "0.5", "0.875")
    assert found["person_level.auc"] == ("0.625", "0.5", "0.75")
    assert found["bystanders.retain.loss_change.worst_tenth"] == ("0.25", "", "")
    assert found["further.few_shot_relearning.unlearned.recovery"] == ("0.125", "0", "0.25")
    assert found["further.few_shot_relearning.unlearned.lr"] == ("1e-05", "", "")
    assert found["further.few_shot_relearning.excess.value"] == ("0.0625", "-0.5", "0.5")
    assert found["further.quantization.int8.gap_closure"] == ("0.875", "0.75", "1")
    assert found["further.representation.forget.unlearned.cka.1"] == ("0.5", "", "")
    assert not [metric for metric in found if "not_run" in metric]
    assert found["bystanders.groups.retain.Male.difference"] == ("0.25", "0.125", "0.375")
    assert found["bystanders.groups.retain.Male.people_without"] == ("5", "", "")
    assert found["bystanders.groups.retain.39.p_value"] == ("0.75", "", "")
    assert not [metric for metric in found if "oracle" in metric.split(".") or "interval" in metric]


def test_groups_are_sorted_by_data_set_and_request_size() -> None:
    rows = [row("original") | {"dataset": name, "forget": forget} for name in ("b", "a") for forget in (10, 5)]
    assert [(group.dataset, group.forget) for group in summarise(rows)] == [("a", 5), ("a", 10), ("b", 5), ("b", 10)]


def small() -> list[dict[str, Any]]:
    return [
        row("original"),
        row("oracle", forget=60.0, tow=100.0, gap=1.0, auc=0.5),
        row("method", 0, "50% off & a_b", forget=75.0, tow=95.0, gap=0.25, auc=0.74),
        row("method", 0, "[x]", ("retain", "forget"), forget=79.0, tow=91.0, gap=0.05, auc=0.75),
    ]


LATEX = r"""% \usepackage{booktabs}

\begin{table}
\centering
\caption{synthetic: 4 forget identities, seed 0. $\uparrow$: higher is better; $\to$: closer to that value is better. The oracle has ToW 100 and gap closure 1; do nothing has gap closure 0. [ ]: bootstrap 95 \% interval over people. Noise floor: an oracle of another seed compared with the oracle, as a difference ($\pm$) or as a value. $^{\dagger}$: the difference from doing nothing is within the noise floor. Bold: the highest ToW of the methods that read the support image alone, if above doing nothing by more than the noise floor.}
\label{tab:oneshui-synthetic-4}
\begin{tabular}{lrrrrrr}
\toprule
method & retain mAP $\uparrow$ & forget mAP $\to$ oracle & test mAP $\uparrow$ & ToW $\uparrow$ & gap closure $\to$ 1 & strongest attack AUC $\to$ 0.5 \\
\midrule
do nothing & 95.0 & 80.0 [76.0, 82.0] & 60.0 & 90.0 [88.0, 92.0] & 0.00 & 0.750 [0.688, 0.812] \\
noise floor & $\pm$1.0 & $\pm$2.0 & $\pm$1.5 & 96.0 & $\pm$0.25 & 0.530 \\
oracle & 95.0$^{\dagger}$ & 60.0 [56.0, 62.0] & 60.0$^{\dagger}$ & 100.0 [98.0, 102.0] & 1.00 & 0.500 [0.438, 0.562] \\
\midrule
\textbf{50\% off \& a\_b} & 95.0$^{\dagger}$ & 75.0 [71.0, 77.0] & 60.0$^{\dagger}$ & \textbf{95.0 [93.0, 97.0]} & 0.25$^{\dagger}$ & 0.740 [0.677, 0.802]$^{\dagger}$ \\
\midrule
\multicolumn{7}{l}{\emph{Upper references: methods that read training data at request time}} \\
{}[x] & 95.0$^{\dagger}$ & 79.0 [75.0, 81.0]$^{\dagger}$ & 60.0$^{\dagger}$ & 91.0 [89.0, 93.0]$^{\dagger}$ & 0.05$^{\dagger}$ & 0.750 [0.688, 0.812]$^{\dagger}$ \\
\bottomrule
\end{tabular}
\end{table}
"""  # noqa: E501


def test_complete_latex() -> None:
    assert latex(summarise(small())) == LATEX


MARKDOWN = r"""## synthetic: 4 forget identities, seed 0

| method | retain mAP ↑ | forget mAP → oracle | test mAP ↑ | ToW ↑ | gap closure → 1 | strongest attack AUC → 0.5 |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| do nothing | 95.0 | 80.0 [76.0, 82.0] | 60.0 | 90.0 [88.0, 92.0] | 0.00 | 0.750 [0.688, 0.812] |
| noise floor | ±1.0 | ±2.0 | ±1.5 | 96.0 | ±0.25 | 0.530 |
| oracle | 95.0† | 60.0 [56.0, 62.0] | 60.0† | 100.0 [98.0, 102.0] | 1.00 | 0.500 [0.438, 0.562] |
| **50% off \& a\_b** | 95.0† | 75.0 [71.0, 77.0] | 60.0† | **95.0 [93.0, 97.0]** | 0.25† | 0.740 [0.677, 0.802]† |
| *Upper references: methods that read training data at request time* |  |  |  |  |  |  |
| \[x\] | 95.0† | 79.0 [75.0, 81.0]† | 60.0† | 91.0 [89.0, 93.0]† | 0.05† | 0.750 [0.688, 0.812]† |

↑: higher is better; →: closer to that value is better. The oracle has ToW 100 and gap closure 1; do nothing has gap closure 0. [ ]: bootstrap 95 % interval over people. Noise floor: an oracle of another seed compared with the oracle, as a difference (±) or as a value. †: the difference from doing nothing is within the noise floor. Bold: the highest ToW of the methods that read the support image alone, if above doing nothing by more than the noise floor.
"""  # noqa: E501


def test_complete_markdown() -> None:
    assert markdown(summarise(small())) == MARKDOWN


def test_complete_tidy_csv() -> None:
    done = row("method", 1, "a, b", ("support",), forget=1 / 3, gap=None)
    done["metrics"] |= {"noise_floor": {"retain": 1.0, "tow": 96.5}, "to_oracle": {"forget": {"loss_gap": -0.5}}, "attacks": {}}
    done["metrics"] |= {"probe": {"chance": 0.25}, "relearning": None, "retain": {}, "test": None}
    assert tidy_csv([done, failed(0, "c", ("retain", "forget"))]) == (
        "dataset,forget,seed,method,reads,set,metric,value,low,high,collapsed\n"
        "synthetic,4,0,c,forget retain,,failed,1,,,\n"
        'synthetic,4,1,"a, b",support,forget,images,4,,,\n'
        'synthetic,4,1,"a, b",support,forget,people,2,,,\n'
        'synthetic,4,1,"a, b",support,forget,loss,0.5,,,\n'
        'synthetic,4,1,"a, b",support,forget,map,0.3333333333,-3.666666667,2.333333333,\n'
        'synthetic,4,1,"a, b",support,,tow,90,88,92,\n'
        'synthetic,4,1,"a, b",support,,gap_closure,,,,\n'
        'synthetic,4,1,"a, b",support,forget,to_oracle.loss_gap,-0.5,,,\n'
        'synthetic,4,1,"a, b",support,,attack.strongest.auc_either_way,,,,\n'
        'synthetic,4,1,"a, b",support,,probe.chance,0.25,,,\n'
        'synthetic,4,1,"a, b",support,retain,noise_floor,1,,,\n'
        'synthetic,4,1,"a, b",support,,noise_floor.tow,96.5,,,\n'
    )


def test_tidy_csv_lists_attacks_with_their_interval_and_resolved_rates() -> None:
    read = list(csv.DictReader(io.StringIO(tidy_csv([row("original")]))))
    found = {line["metric"]: (line["value"], line["low"], line["high"]) for line in read if line["metric"].startswith("attack")}
    assert found["attack.loss.auc"] == ("0.75", "0.6875", "0.8125")
    assert list(found)[-4:] == [
        "attack.loss.tpr_at_0.1",
        "attack.loss.tpr_at_0.01",
        "attack.loss.tpr_at_0.001",
        "attack.strongest.auc_either_way",
    ]
    assert found["attack.loss.tpr_at_0.001"] == ("", "", "")
    assert {line["method"] for line in read} == {"do nothing"}


def test_costs_are_a_separate_file() -> None:
    rows = [row("method", 1, "a"), row("original", 0), failed(0, "a")]
    assert costs_csv(rows) == (
        "dataset,forget,seed,method,prepare_s,prepare_mb,apply_s,apply_mb,kept_mb\n"
        "synthetic,4,0,do nothing,,,0.5,,\n"
        "synthetic,4,1,a,,,0.5,,\n"
    )
    assert "0.5,," not in tidy_csv([row("original") | {"metrics": {"score": "map"}}])


def test_order_of_rows_changes_no_byte() -> None:
    rows = [*small(), *(row(kind, seed, label) for seed in (2, 10) for kind, label in (("original", ""), ("floor", ""), ("method", "[x]")))]
    rows += [failed(2, "50% off & a_b"), row("original") | {"dataset": "é", "forget": 1}, row("original") | {"dataset": "è", "forget": 1}]
    outputs = []
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        outputs.append((tidy_csv(rows), costs_csv(rows), markdown(summarise(rows)), latex(summarise(rows))))
    assert len(set(outputs)) == 1
    text = outputs[0][0]
    assert text.index("synthetic,4,2,") < text.index("synthetic,4,10,")  # seeds are numbers
    assert r"\label{tab:oneshui-data-1}" in outputs[0][3]
    assert r"\label{tab:oneshui-data-1-2}" in outputs[0][3]  # two names without ASCII letters


def test_no_rows_give_headers_only() -> None:
    assert summarise([]) == []
    assert tidy_csv([]).count("\n") == costs_csv([]).count("\n") == 1


def test_labels_are_those_that_a_grid_reserves() -> None:
    group = only([row("original"), row("floor"), row("oracle")])
    assert {line.row: line.label for line in group.lines} == BUILTIN_ROWS
    assert all(set(line.values) == set(COLUMNS) for line in group.lines)
    assert {field.name for field in fields(Group)} >= {"dataset", "forget", "seeds", "score", "columns", "floor", "lines"}
