"""What docs/appendix/benchmark.md states about the present definition of mAP follows from the published files."""

from __future__ import annotations

import csv
import re
from functools import cache
from math import prod
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SEEDS = (0, 1, 2)
TABLES = (("folder-5", "faces", 5, 33), ("folder-10", "faces", 10, 37), ("folder-10, paper's regime", "paper-regime", 10, 37))


def read(name: str, forget: int) -> dict[tuple[int, str, str, str], float]:
    with (RESULTS / name / "results.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["dataset"] == "folder" and row["forget"] == str(forget) and row["value"]]
    return {(int(row["seed"]), row["method"], row["set"], row["metric"]): float(row["value"]) for row in rows}


def published() -> dict[str, dict[str, list[str]]]:
    """The cells of the table of old and new values, by part and method."""
    page = (RESULTS.parent / "appendix" / "benchmark.md").read_text(encoding="utf-8")
    table = page.partition("## mAP as it is defined today")[2].partition("\n## ")[0]
    found: dict[str, dict[str, list[str]]] = {}
    for line in re.findall(r"^\| (.+) \|$", table, re.MULTILINE)[1:]:
        label, *cells = line.split(" | ")
        if part := re.fullmatch(r"\*(.+)\*: (.+)", label):
            rows, label = found.setdefault(part[1], {}), part[2]
        rows[label] = cells
    return found


def fixed(value: float, decimals: int = 1) -> str:
    return f"{value:.{decimals}f}".replace("-0.00", "0.00")


def over_seeds(values: list[float], decimals: int = 1) -> str:
    half_width = float(stats.t.ppf(0.975, 2)) * stdev(values) / 3**0.5
    return f"{fmean(values):.{decimals}f}" + (f" ± {half_width:.{decimals}f}" if half_width > 1e-9 else "")


@pytest.mark.parametrize(("part", "folder", "forget", "counted"), TABLES)
def test_changed_rows_follow_from_the_published_scores(part: str, folder: str, forget: int, counted: int) -> None:
    numbers = read(folder, forget)
    assert 40 - numbers[1, "oracle", "forget", "labels_left_out"] == counted

    def scores(seed: int, method: str, *, new: bool) -> dict[str, float]:
        found = {name: numbers[seed, method, name, "map"] for name in ("retain", "forget", "test")}
        changed = (counted * found["forget"] - 100) / (counted - 1)
        return found | {"forget": changed} if new and seed == 1 else found

    def tow(seed: int, method: str, *, new: bool) -> float:
        own, oracle = (scores(seed, name, new=new) for name in (method, "oracle"))
        return 100 * prod(1 - abs(own[name] - oracle[name]) / 100 for name in own)

    for method, cells in published()[part].items():
        old_forget, new_forget = (scores(1, method, new=new)["forget"] for new in (False, True))
        original, oracle = (scores(1, name, new=True)["forget"] for name in ("do nothing", "oracle"))
        closure = (original - new_forget) / (original - oracle)
        assert closure == pytest.approx(numbers[1, method, "", "gap_closure"], abs=1e-8)
        assert tow(1, method, new=False) == pytest.approx(numbers[1, method, "", "tow"], abs=1e-6)
        assert cells == [
            *map(fixed, (old_forget, new_forget, tow(1, method, new=False), tow(1, method, new=True))),
            fixed(closure, 2),
            *(over_seeds([tow(seed, method, new=new) for seed in SEEDS]) for new in (False, True)),
        ], method
    methods = {method for _, method, name, metric in numbers if (name, metric) == ("forget", "map")}
    for method in methods:
        assert abs(scores(1, method, new=True)["forget"] - scores(1, method, new=False)["forget"]) < 1.75
        assert abs(tow(1, method, new=True) - tow(1, method, new=False)) < 1.55
        assert abs(fmean(tow(s, method, new=True) for s in SEEDS) - fmean(tow(s, method, new=False) for s in SEEDS)) < 0.55


def test_every_part_is_in_the_table() -> None:
    assert published().keys() == {part for part, *_ in TABLES}


TODAY = (  # the rows of "Today's defaults": file, data set, forget identities, seed
    ("difference/strong.csv", "folder", 10, 0),
    ("difference/strong.csv", "folder", 10, 1),
    ("difference/strong.csv", "folder", 10, 2),
    ("difference/celeba.csv", "celeba", 20, 0),
    ("difference/celeba.csv", "celeba", 20, 1),
    ("paper-regime/today.csv", "folder", 10, 0),
    ("paper-regime/today.csv", "folder", 10, 1),
    ("paper-regime/today.csv", "folder", 10, 2),
)
Numbers = dict[tuple[str, str, str], dict[str, float]]  # value and ends of the interval, by method, set and metric


@cache
def numbers_of(file: str, dataset: str, forget: int, seed: int) -> Numbers:
    with (RESULTS / file).open() as stream:
        return {
            (line["method"], line["set"], line["metric"]): {key: float(line[key]) for key in ("value", "low", "high") if line[key]}
            for line in csv.DictReader(stream)
            if (line["dataset"], line["forget"], line["seed"]) == (dataset, str(forget), str(seed))
        }


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "\u2212")


def todays_values(numbers: Numbers) -> dict[str, float]:
    """The numbers of forget keys, and of the oracle, in a row of "Today's defaults"."""

    def of(method: str, name: str, metric: str) -> float:
        return numbers[method, name, metric]["value"]

    before, keys, oracle = (of(method, "forget", "loss") for method in ("do nothing", "forget-keys", "oracle"))
    found = {
        "forget": of("forget-keys", "forget", "map"),
        "gap closure": of("forget-keys", "", "gap_closure"),
        "in loss": (before - keys) / (before - oracle),
        "tow": of("forget-keys", "", "tow"),
        "js": of("forget-keys", "forget", "to_oracle.jensen_shannon") / of("forget-keys", "", "noise_floor.jensen_shannon"),
        "u-lira": of("forget-keys", "", "attack.u_lira.auc"),
    }
    for method in ("forget-keys", "oracle"):
        changes = {f"{method} {name}": of(method, name, "map") - of("do nothing", name, "map") for name in ("retain", "test")}
        aucs = {f"{method} {name}": of(method, "", f"attack.{name}") for name in ("rmia.auc", "strongest.auc_either_way")}
        found |= changes | aucs
    return found


def todays_cells(numbers: Numbers) -> list[str]:
    """The cells of a row of one seed."""
    found, closure = todays_values(numbers), numbers["forget-keys", "", "gap_closure"]

    def change(name: str) -> str:
        return f"{signed(found[f'forget-keys {name}'])} ({signed(found[f'oracle {name}'])})"

    return [
        change("retain"),
        f"{found['forget']:.1f}, {closure['value']:.2f} [{closure['low']:.2f}, {closure['high']:.2f}]",
        f"{found['in loss']:.2f}",
        change("test"),
        f"{found['tow']:.1f}",
        f"{found['js']:.2f}",
        f"{found['u-lira']:.3f}",
        *(f"{found[f'forget-keys {name}']:.3f} ({found[f'oracle {name}']:.3f})" for name in ("rmia.auc", "strongest.auc_either_way")),
    ]


def mean_cells(seeds: list[Numbers]) -> list[str]:
    """The cells of the row of means over three seeds."""
    each = [todays_values(numbers) for numbers in seeds]
    found = {name: [one[name] for one in each] for name in each[0]}

    def with_oracle(name: str) -> str:
        return f"{fmean(found[f'forget-keys {name}']):.3f} ({fmean(found[f'oracle {name}']):.3f})"

    return [
        signed(fmean(found["forget-keys retain"])),
        f"{fmean(found['forget']):.1f}, {over_seeds(found['gap closure'], 2)}",
        over_seeds(found["in loss"], 2),
        signed(fmean(found["forget-keys test"])),
        over_seeds(found["tow"]),
        f"{fmean(found['js']):.2f}",
        f"{fmean(found['u-lira']):.3f}",
        with_oracle("rmia.auc"),
        with_oracle("strongest.auc_either_way"),
    ]


def test_todays_defaults_follow_from_the_published_results() -> None:
    page = (RESULTS / "benchmark.md").read_text(encoding="utf-8")
    table = page.partition("## Today's defaults")[2].partition("\n## ")[0]
    rows = [[cell.strip(" *") for cell in line.split("|")[2:-1]] for line in table.splitlines() if line.startswith("|")][2:]
    seeds = [numbers_of(*place) for place in TODAY]
    cells = [todays_cells(numbers) for numbers in seeds]
    assert rows == [*cells[:3], mean_cells(seeds[:3]), *cells[3:], mean_cells(seeds[5:])]


STRONG, HEAD, CELEBA = (f"difference/{name}.csv" for name in ("strong", "exact-head", "celeba"))
FOLDER, FOLDER_HEAD = (STRONG, "folder", 10), (HEAD, "folder closed form", 10)
FACES, FACES_HEAD = (CELEBA, "celeba", 20), (HEAD, "celeba closed form", 20)
DIFFERENCE = {  # the rows of the tables of difference.md: file, data set, forget identities, seeds and method
    "folder": {
        "oracle": (*FOLDER, (0, 1, 2), "oracle"),
        "original": (*FOLDER, (0, 1, 2), "do nothing"),
        "forget keys, cross-fitted": (*FOLDER, (0, 1, 2), "forget-keys"),
        "forget keys, quantile": (*FOLDER, (0, 1, 2), "forget-keys quantile"),
        "MetaUnlearn": (*FOLDER, (0, 1, 2), "metaunlearn"),
        "exact head": (*FOLDER_HEAD, (0, 1, 2), "exact-head"),
    },
    "celeba": {
        "oracle": (*FACES, (0, 1), "oracle"),
        "original": (*FACES, (0, 1), "do nothing"),
        "forget keys, cross-fitted": (*FACES, (0, 1), "forget-keys"),
        "MetaUnlearn": (*FACES, (0, 1), "metaunlearn"),
        "exact head": (*FACES_HEAD, (0, 1), "exact-head"),
        "closed form: original": (*FACES_HEAD, (0, 1), "do nothing"),
        "closed form: oracle": (*FACES_HEAD, (0, 1), "oracle"),
    },
}
COLUMNS = {  # metric, and decimals
    "loss rise": ("difference.outputs.loss_rise.owner.rank", 1),
    "logit distance": ("difference.outputs.logit_distance.owner.rank", 1),
    "weights": ("difference.weights.owner.rank", 1),
    "share, outputs": ("difference.outputs.loss_rise.owner.batch_share", 2),
    "share, weights": ("difference.weights.owner.batch_share", 2),
    "loss": ("attack.loss.auc", 2),
    "RMIA": ("attack.rmia.auc", 2),
    "IAM": ("attack.iam.auc", 2),
    "range attack on a person": ("person_level.auc", 2),
    "U-LiRA": ("attack.u_lira.auc", 2),
}


@pytest.mark.parametrize(("part", "tables"), [("folder", 2), ("celeba", 2)])
def test_tables_of_the_difference_follow_from_the_published_results(part: str, tables: int) -> None:
    before, celeba, _ = re.split(r"^## (?:Celeba, .*|Releases .*)$", (RESULTS / "difference.md").read_text(), flags=re.MULTILINE)
    found = 0
    for table in re.findall(r"(?:^\|.*\n)+", {"folder": before, "celeba": celeba}[part], re.MULTILINE):
        header, _, *rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        if not set(header[1:]) <= COLUMNS.keys():
            continue
        found += 1
        for label, *cells in rows:
            [place] = [place for start, place in DIFFERENCE[part].items() if label.startswith(start)]
            file, dataset, forget, seeds, method = place
            by_seed = [numbers_of(file, dataset, forget, seed) for seed in seeds]
            for (metric, decimals), cell in zip((COLUMNS[name] for name in header[1:]), cells, strict=True):
                values, _, interval = cell.partition(" [")
                measured = [numbers.get((method, "", metric), {}) for numbers in by_seed]
                assert (values, metric) == (", ".join(fixed(one["value"], decimals) for one in measured if one), metric), label
                if interval:
                    assert interval == f"{measured[-1]['low']:.{decimals}f}, {measured[-1]['high']:.{decimals}f}]", label
    assert found == tables
