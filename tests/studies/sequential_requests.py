"""What it costs the others when people are forgotten one by one, in two orders, and all at once; and what was estimated before.

python tests/studies/sequential_requests.py RUN --output docs/results/sequential [--vault FOLDER] [--data-dir DIR]

The people are the forget set of a run that has prepared a method. For each order, the run and its secrets are copied, and each person's
support image goes through the request desk: `receive`, `identify` by name, `apply` with the model of the step before. After each step, the
scores on retain, val and test are measured, and the mean losses on the training photos of those who were forgotten and of those who wait.
The original is not changed. An artefact without simulated batches gets them here, as `prepare` makes them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn

import oneshui_hf
from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.desk.entries import estimated_points
from oneshui_hf.errors import OneshuiError
from oneshui_hf.methods import Artefact, Context, generator, losses, predict, sample, score
from oneshui_hf.methods.artefact import read_header
from oneshui_hf.models.load import load_model
from oneshui_hf.plugins import METHODS, Plugins
from oneshui_hf.results.figures.panel import BRIGHT, DARK, LINES, SHADE, as_svg, legend, lines, panel, style
from oneshui_hf.runs import Run, write_json
from oneshui_hf.stages.batch_cost import SIMULATED, estimate_cost, simulate_batches
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.requests import budget
from oneshui_hf.stages.run_data import open_data
from oneshui_hf.vault import vault_root

METHOD, SEED = "forget-keys", 0
MAX_PHOTOS = 500  # of retain, val and test, on which a model is scored
UNBOUNDED = 1000.0  # budget in points: the study goes on where the desk would refuse
OTHERS = ("retain", "val", "test")
ONCE = "at once"


@dataclass(frozen=True, eq=False)
class Study:
    """The original, its photos, and the people who are forgotten.

    Attributes:
        run: The original.
        sets: Photos: forget, and those of the others on which models are scored.
        people: The forget set, as numbers, in the order of the data.
        names: The name of each.
        support: The support image of each, as a PNG file.
    """

    run: Run
    sets: dict[str, FaceSet]
    people: tuple[int, ...]
    names: dict[int, str]
    support: dict[int, bytes]

    @classmethod
    def open(cls, run: Run, data_dir: str | None = None) -> Study:
        """Read the data of a run."""
        sets = open_data(run, make_accelerator(), data_dir).sets
        images = sets["support"]
        numbers = images.identities.tolist()
        pictures = images.raw_pixels(torch.arange(len(images))).permute(0, 2, 3, 1).numpy()
        drawn = {name: sets[name].subset(sample(len(sets[name]), MAX_PHOTOS, generator(SEED, "study", name))) for name in OTHERS}
        return cls(
            run,
            {"forget": sets["forget"], **drawn},
            tuple(numbers),
            {number: images.people[number] for number in numbers},
            {number: _png(picture) for number, picture in zip(numbers, pictures, strict=True)},
        )

    def orders(self) -> dict[str, list[list[int]]]:
        """Return the batches of each way to forget everybody: one by one in a drawn order and in the reverse one, and at once."""
        drawn = [self.people[place] for place in torch.randperm(len(self.people), generator=generator(SEED, "order")).tolist()]
        return {"first order": [[one] for one in drawn], "reverse order": [[one] for one in reversed(drawn)], ONCE: [drawn]}

    def measure(self, model: nn.Module, forgotten: Sequence[int]) -> dict[str, float | None]:
        """Return the scores of the others, and the mean losses on photos of those who are forgotten, who wait, and of test."""
        accelerator, (_, _, task) = make_accelerator(), load_model(self.run.path)
        logits = {name: predict(model, faces, accelerator) for name, faces in self.sets.items()}
        photo_losses = {name: losses(logits[name], faces.labels, task.kind) for name, faces in self.sets.items()}
        is_forgotten = torch.isin(self.sets["forget"].identities, torch.tensor(list(forgotten), dtype=torch.long))
        return {
            **{name: score(logits[name], self.sets[name].labels, task) for name in OTHERS},
            "loss_forgotten": _mean(photo_losses["forget"][is_forgotten]),
            "loss_waiting": _mean(photo_losses["forget"][~is_forgotten]),
            "loss_test": _mean(photo_losses["test"]),
        }


def _mean(values: torch.Tensor) -> float | None:
    return values.double().mean().item() if len(values) else None


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def curve(run: Run, vault: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Return the scores of simulated batches: those of the artefact, or new ones as `prepare` makes them."""
    header = read_header(run.artefact(METHOD))
    if SIMULATED in header["report"]:
        return {SIMULATED: header["report"][SIMULATED], "seed": header["report"]["seed"]}
    method = Plugins(METHODS).load(METHOD)
    artefact = Artefact.load(run.artefact(METHOD), METHOD, run.weights, vault=vault)
    model, _, task = load_model(run.path)
    context = Context(task, int(header["report"]["seed"]), make_accelerator())
    sets = open_data(run, context.accelerator, data_dir).sets
    found = simulate_batches(method(), model, sets, artefact, method.prepare_options(METHOD, {}, artefact.options), context)
    return {**found, "seed": context.seed}


def run_order(
    study: Study, batches: Sequence[Sequence[int]], report: dict[str, Any], vault: Path, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yield the measurements after each batch that the desk applies to a copy of the run.

    Args:
        study: The original and the photos.
        batches: The people of each batch.
        report: What the desk reads as the report of the artefact.
        vault: The secrets of the original.
        folder: An empty folder for the copies.
    """
    shutil.copytree(vault, folder / "vault")
    run = Run.open(shutil.copytree(study.run.path, folder / "run"))
    forgotten: list[int] = []
    environment = mock.patch.dict(os.environ, ONESHUI_VAULT=str(folder / "vault"))
    with environment, mock.patch.object(budget, "_prepared_report", lambda *_: report):  # the artefact may have been made without it
        for batch in batches:
            for person in batch:
                photo = folder / "face.png"
                photo.write_bytes(study.support[person])
                request = oneshui_hf.receive_request(photo, identity=study.names[person], desk=str(folder / "desk"))["request"]
                oneshui_hf.identify_request(request, run, desk=str(folder / "desk"))
            done = oneshui_hf.apply_requests(run=run, method=METHOD, budget=UNBOUNDED, desk=str(folder / "desk"))
            forgotten += batch
            made = Run.open(done["run"])
            estimate = {name: done["estimate"][name] for name in ("retain", "val")}
            measured = study.measure(load_model(made.path)[0], forgotten)
            verdicts = [row["verdict"] for row in done["requests"]]
            yield {"people": len(forgotten), **measured, "estimate": estimate, "val_loss": done["val_loss"], "verdicts": verdicts}
            run = made


def budget_end(report: dict[str, Any], points: float, most: int) -> int | None:
    """Return the largest number of people whose estimated cost is within the budget; None if it is not reached up to `most`."""
    for people in range(1, most + 1):
        cost = estimate_cost(report, people)
        assert cost is not None
        if estimated_points(vars(cost)) > points:
            return people - 1
    return None


def results(study: Study, vault: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Return everything that is measured. It contains no name."""
    report = curve(study.run, vault, data_dir)
    original = study.measure(load_model(study.run.path)[0], [])
    found: dict[str, Any] = {
        "run": {key: study.run.record.options[key] for key in ("image_size", "epochs", "optimizer", "lr", "augment", "keep")},
        "method": METHOD,
        "options": read_header(study.run.artefact(METHOD))["options"],
        "people": len(study.people),
        "photos": {name: len(faces) for name, faces in study.sets.items()},
        "unseen_loss": study.run.record.report["unseen_loss"],
        "original": original,
        "simulated": report[SIMULATED],
        "budget": budget.DEFAULT_BUDGET,
        "budget_ends_after": budget_end(report, budget.DEFAULT_BUDGET, report[SIMULATED]["rows"][-1]["people"]),
        "orders": {},
    }
    for name, batches in study.orders().items():
        with tempfile.TemporaryDirectory() as folder:
            found["orders"][name] = []
            for row in run_order(study, batches, report, vault, Path(folder)):
                found["orders"][name].append(row)
                print(f"{name}: {row['people']} people, retain {row['retain']:.2f}, val {row['val']:.2f}", file=sys.stderr, flush=True)
    return found


MARKERS = {"first order": ("o", DARK), "reverse order": ("s", "white"), ONCE: ("D", BRIGHT)}


def cost_figure(found: dict[str, Any]) -> str:
    """Return the figure of what the others lose: the estimate as lines, the measurements as marks, and the budget."""
    original, simulated = found["original"], found["simulated"]["rows"]
    with style():
        figure, axes = panel(230, left=40)
        axes.axhline(found["budget"], color=BRIGHT, linewidth=1.1, linestyle=LINES[1])
        for name, line in (("retain", "solid"), ("val", LINES[2])):
            people = [row["people"] for row in simulated]
            axes.plot(people, [simulated[0][name] - row[name] for row in simulated], color=DARK, linewidth=1.3, linestyle=line)
        for order, rows in found["orders"].items():
            marker, face = MARKERS[order]
            people = [row["people"] for row in rows]
            axes.plot(people, [original["retain"] - row["retain"] for row in rows], marker, color=face, markeredgecolor=DARK, markersize=4)
        axes.set_xscale("symlog", linthresh=1)
        ticks = [row["people"] for row in simulated]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid()
        axes.set_xlabel("people forgotten")
        axes.set_ylabel("points of score lost")
        last = found["orders"]["first order"][-1]
        text = (
            f"Loss of the others with {last['people']} people forgotten one by one: {original['retain'] - last['retain']:.2f} points on "
            f"retain, estimated {last['estimate']['retain']:.2f}. The budget of {found['budget']:g} points ends after "
            f"{found['budget_ends_after']} people."
        )
        return as_svg(figure, "cost", "What forgetting costs the others", text)


def loss_figure(found: dict[str, Any]) -> str:
    """Return the figure of the mean losses of those who are forgotten and who wait, with the range of unseen identities."""
    low, high = found["unseen_loss"]["given"]
    with style():
        figure, axes = panel(190, left=40)
        axes.axhspan(low, high, color=SHADE)
        axes.axhline(found["original"]["loss_test"], color=BRIGHT, linewidth=1.1, linestyle=LINES[1])
        for order, rows in found["orders"].items():
            marker, face = MARKERS[order]
            for key, size in (("loss_forgotten", 4.5), ("loss_waiting", 2.5)):
                points = [(row["people"], row[key]) for row in rows if row[key] is not None]
                axes.plot(*zip(*points, strict=True) if points else ([], []), marker, color=face, markeredgecolor=DARK, markersize=size)
        axes.set(xlim=(0, found["people"] + 1), ylim=(0, None))
        axes.grid(axis="y")
        axes.set_xlabel("people forgotten")
        axes.set_ylabel("mean loss on training photos")
        last = found["orders"]["first order"][-1]
        unseen = f"of unseen identities {found['original']['loss_test']:.3f}"
        text = f"Mean loss of {last['people']} forgotten people {last['loss_forgotten']:.3f}; {unseen}."
        return as_svg(figure, "losses", "Forgotten people and those who wait", text)


def figure_legend() -> str:
    """Return the legend of both figures."""
    line = lines()
    marks = [
        (label, line([], [], marker=marker, color=face, markeredgecolor=DARK, markersize=4.5, linestyle="none"))
        for label, (marker, face) in MARKERS.items()
    ]
    retain = ("estimate on retain", line([], [], color=DARK, linewidth=1.3))
    val = ("on val", line([], [], color=DARK, linewidth=1.3, linestyle=LINES[2]))
    bound = ("budget; mean loss on test", line([], [], color=BRIGHT, linewidth=1.1, linestyle=LINES[1]))
    return legend("legend", [*marks, retain, val, bound])


def write(found: dict[str, Any], folder: Path) -> None:
    """Write the results and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sequential.json", found)
    for name, svg in (("cost", cost_figure(found)), ("losses", loss_figure(found)), ("legend", figure_legend())):
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def main() -> None:
    """Run the study, or draw the figures of an earlier one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", nargs="?", help="an original with prepared forget keys; without it, figures are drawn again")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    parser.add_argument("--vault", type=Path, help="folder of the secrets; the user's by default")
    parser.add_argument("--data-dir", help="folder of the data set, if it has moved")
    given: Any = parser.parse_args()
    if given.run is None:
        found = json.loads((given.output / "sequential.json").read_text())
    else:
        found = results(Study.open(Run.open(given.run), given.data_dir), given.vault or vault_root(), given.data_dir)
    write(found, given.output)


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
