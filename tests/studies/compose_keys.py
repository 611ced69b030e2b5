"""What keys cost when many are used: at once, and one after the other.

python tests/studies/compose_keys.py RUN [--people 1,5,20] [--strength 1.0]

RUN is a run for which `oneshui prepare --method forget-keys` was run. People are drawn at random, and stay the same ones as more are added;
for one person the mean over the first ten is told. Everything is measured on all training photos of those who ask, on those of all others,
and on test photos.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from oneshui_hf.data.face_set import FaceSet
from oneshui_hf.errors import OneshuiError, UsageError
from oneshui_hf.methods import Artefact, Context, DataAccess, Request, generator
from oneshui_hf.metrics.functional import score_of
from oneshui_hf.models.load import load_model
from oneshui_hf.models.outputs import losses, predict
from oneshui_hf.runs import Run
from oneshui_hf.stages.distributed import make_accelerator
from oneshui_hf.stages.run_data import open_data
from oneshui_plugins.forget_keys.method import ForgetKeys
from oneshui_plugins.forget_keys.options import ForgetKeysOptions

SEED, SINGLE, IN_ORDER = 0, 10, 20  # how many are tried alone, and how many one after the other


@dataclass(frozen=True)
class Prepared:
    """A model with keys.

    Attributes:
        model: The original model.
        artefact: Its keys.
        options: Of the method.
        train: The training photos.
        test: Strangers' photos.
        context: For the task.
    """

    model: torch.nn.Module
    artefact: Artefact
    options: ForgetKeysOptions
    train: FaceSet
    test: FaceSet
    context: Context

    @classmethod
    def open(cls, run: Run, folder: Path, vault: Path | None, accelerator: Accelerator) -> Prepared:
        """Load what was prepared for a run."""
        artefact = Artefact.load(folder, "forget-keys", run.weights, vault=vault)
        model, _, task = load_model(run.path, accelerator.device)
        sets = open_data(run, accelerator).sets
        return cls(
            model.eval(), artefact, ForgetKeysOptions(**artefact.options), sets["train"], sets["test"], Context(task, SEED, accelerator)
        )

    def order(self) -> list[str]:
        """Return all who have a key, in the order in which they ask."""
        people = sorted(person for person in self.train.people if person in self.artefact.people)
        return [people[place] for place in torch.randperm(len(people), generator=generator(SEED, "asking")).tolist()]

    def without(self, people: Sequence[str], model: torch.nn.Module | None = None) -> torch.nn.Module:
        """Return the model, or one that keys have been added to, with the keys of these people."""
        nothing = torch.zeros(len(people), 3, 1, 1)  # a key is found by who asks, and not by the photo
        request = Request(nothing, tuple(people), nothing, labels_given=False)
        data = DataAccess({"support": request}, ForgetKeys.needs.apply)
        return ForgetKeys().apply(model or self.model, data, self.artefact, self.options, self.context)

    def said(self, model: torch.nn.Module, faces: FaceSet) -> torch.Tensor:
        """Return what a model says of a set, logits (n, K)."""
        return predict(model, faces, self.context.accelerator)

    def measured(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Return the score in percent (mAP, or accuracy of classes) and the mean loss."""
        kind = self.context.task.kind
        return score_of(logits, labels, kind), losses(logits, labels, kind).mean().item()

    @cached_property
    def before(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the original model says of the training photos and of strangers'."""
        return self.said(self.model, self.train), self.said(self.model, self.test)

    def row(self, people: Sequence[str]) -> torch.Tensor:
        """Return score and loss of those who ask, of the other training people and of strangers, before and after, (3, 2, 2)."""
        asks = torch.tensor([self.train.people[person] in set(people) for person in self.train.identities.tolist()])
        labels, model = self.train.labels, self.without(people)
        after = self.said(model, self.train), self.said(model, self.test)
        rows = []
        for train, test in (self.before, after):
            ours, others = (self.measured(train[chosen], labels[chosen]) for chosen in (asks, ~asks))
            rows.append([ours, others, self.measured(test, self.test.labels)])
        return torch.tensor(rows).transpose(0, 1)

    def apart(self, people: Sequence[str]) -> tuple[float, float]:
        """Return how far weights and logits lie apart at most, if people ask in one order, in the reverse one, or at once."""
        models = [self.without(people)]
        for order in (people, people[::-1]):
            model = self.model
            for person in order:
                model = self.without([person], model)
            models.append(model)
        weights = [torch.cat([w.flatten() for w in model.parameters()]) for model in models]
        logits = [self.said(model, self.test) for model in models]
        pairs = ((0, 1), (0, 2), (1, 2))
        far = [max((each[i] - each[j]).abs().max().item() for i, j in pairs) for each in (weights, logits)]
        return far[0], far[1]


def told(people: int, row: torch.Tensor) -> str:
    """Return a line of the table."""
    (forget, retain, test), cells = row.tolist(), []
    for (before, loss_before), (after, loss_after) in (forget, retain, test):
        cells.append(f"{before:5.2f} -> {after:5.2f}, {loss_before:.3f} -> {loss_after:.3f}")
    return f"{people:>6}  " + "  ".join(f"{cell:<32}" for cell in cells)


def counts(words: str) -> list[int]:
    """Return the numbers of people of the rows."""
    return [int(word) for word in words.split(",")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="a run with its data and with prepared keys")
    parser.add_argument("--people", type=counts, default="1,5,10,20", help="how many ask at once, row by row")
    parser.add_argument("--strength", type=float, help="factor of the keys; as prepared by default")
    parser.add_argument("--artefact", help="where the keys lie, if not in the run")
    parser.add_argument("--vault", help="where their secrets lie, if not in your own vault")
    given: Any = parser.parse_args()
    run = Run.open(given.run)
    folder = Path(given.artefact) if given.artefact else run.artefact("forget-keys")
    prepared = Prepared.open(run, folder, Path(given.vault) if given.vault else None, make_accelerator())
    if given.strength is not None:
        prepared = dataclasses.replace(prepared, options=dataclasses.replace(prepared.options, strength=given.strength))
    order = prepared.order()
    if not all(1 <= people <= len(order) for people in given.people):
        raise UsageError(f"--people takes numbers from 1 to {len(order)}, the people who have a key.")
    print(f"{len(order)} people have keys; strength {prepared.options.strength}. Score in percent and loss, before -> after:")
    print(f"{'people':>6}  {'those who ask':<32}  {'the others':<32}  {'strangers (test)':<32}", flush=True)
    for people in given.people:
        alone = people == 1
        rows = [prepared.row([person]) for person in order[:SINGLE]] if alone else [prepared.row(order[:people])]
        print(told(people, torch.stack(rows).mean(dim=0)), flush=True)
        if alone:
            after = sorted(row[0, 1, 1].item() for row in rows)
            print(f"{'':>6}  the mean of {len(rows)} who ask alone, whose losses are {after[0]:.2f} to {after[-1]:.2f} then")
    weights, logits = prepared.apart(order[:IN_ORDER])
    print(f"The first {len(order[:IN_ORDER])} one by one, in reverse, and at once: weights differ by {weights:.1e}, logits by {logits:.1e}")


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
