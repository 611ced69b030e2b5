"""The cost of several keys: merged at once, and one after the other.

python tests/studies/compose_keys.py RUN [--people 1,5,20] [--strength 1.0]

RUN is a run for which `oneshui prepare --method forget-keys` was run. Identities are drawn at random; larger requests contain the smaller
ones. For one identity the mean over the first ten is printed. Everything is measured on all training photos of the forget identities, on
those of the retain identities, and on test photos.
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

METHOD, SEED = "forget-keys", 0
SINGLE, IN_ORDER = 10, 20  # identities that are measured alone, and that are merged one after the other


@dataclass(frozen=True)
class PreparedModel:
    """A model with prepared keys.

    Attributes:
        model: The original model.
        artefact: Its keys.
        options: Of the method.
        train: The training photos.
        test: Photos of unseen identities.
        context: For the task.
    """

    model: torch.nn.Module
    artefact: Artefact
    options: ForgetKeysOptions
    train: FaceSet
    test: FaceSet
    context: Context

    @classmethod
    def open(cls, run: Run, folder: Path, vault: Path | None, accelerator: Accelerator) -> PreparedModel:
        """Load what was prepared for a run."""
        artefact = Artefact.load(folder, METHOD, run.weights, vault=vault)
        options = ForgetKeys.apply_options(METHOD, artefact.options, {})
        model, _, task = load_model(run.path, accelerator.device)
        sets = open_data(run, accelerator).sets
        return cls(model.eval(), artefact, options, sets["train"], sets["test"], Context(task, SEED, accelerator))

    def request_order(self) -> list[str]:
        """Return all identities with a key, in the random order of their requests."""
        people = sorted(person for person in self.train.people if person in self.artefact.people)
        return [people[index] for index in torch.randperm(len(people), generator=generator(SEED, "asking")).tolist()]

    def unlearn(self, people: Sequence[str], model: torch.nn.Module | None = None) -> torch.nn.Module:
        """Return the original model, or one that already contains keys, with the keys of these identities merged."""
        unused = torch.zeros(len(people), 3, 1, 1)  # keys are found by identity, not by the photo
        request = Request(unused, tuple(people), unused, labels_given=False)
        data = DataAccess({"support": request}, ForgetKeys.needs.apply)
        return ForgetKeys().apply(model or self.model, data, self.artefact, self.options, self.context)

    def logits(self, model: torch.nn.Module, faces: FaceSet) -> torch.Tensor:
        """Return a model's logits for a set, (n, K)."""
        return predict(model, faces, self.context.accelerator)

    def score_and_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Return the score in percent (mAP, or accuracy of classes) and the mean loss."""
        kind = self.context.task.kind
        return score_of(logits, labels, kind), losses(logits, labels, kind).mean().item()

    @cached_property
    def original_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The original model's logits for the training and the test photos."""
        return self.logits(self.model, self.train), self.logits(self.model, self.test)

    def before_and_after(self, people: Sequence[str]) -> torch.Tensor:
        """Return score and loss of forget identities, retain identities and test photos, before and after, (3, 2, 2)."""
        forget = torch.tensor([self.train.people[person] in set(people) for person in self.train.identities.tolist()])
        labels, model = self.train.labels, self.unlearn(people)
        after = self.logits(model, self.train), self.logits(model, self.test)
        rows = []
        for train, test in (self.original_logits, after):
            forget_row, retain_row = (self.score_and_loss(train[chosen], labels[chosen]) for chosen in (forget, ~forget))
            rows.append([forget_row, retain_row, self.score_and_loss(test, self.test.labels)])
        return torch.tensor(rows).transpose(0, 1)

    def order_differences(self, people: Sequence[str]) -> tuple[float, float]:
        """Return the largest difference of weights and of logits between requests in one order, in the reverse order, and at once."""
        models = [self.unlearn(people)]
        for order in (people, people[::-1]):
            model = self.model
            for person in order:
                model = self.unlearn([person], model)
            models.append(model)
        weights = [torch.cat([w.flatten() for w in model.parameters()]) for model in models]
        logits = [self.logits(model, self.test) for model in models]
        pairs = ((0, 1), (0, 2), (1, 2))
        largest = [max((each[i] - each[j]).abs().max().item() for i, j in pairs) for each in (weights, logits)]
        return largest[0], largest[1]


def format_row(people: int, row: torch.Tensor) -> str:
    """Return a line of the table."""
    cells = []
    for (before, loss_before), (after, loss_after) in row.tolist():
        cells.append(f"{before:5.2f} -> {after:5.2f}, {loss_before:.3f} -> {loss_after:.3f}")
    return f"{people:>6}  " + "  ".join(f"{cell:<32}" for cell in cells)


def parse_counts(text: str) -> list[int]:
    """Return the numbers of identities of the rows."""
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", help="a run with its data and with prepared keys")
    parser.add_argument("--people", type=parse_counts, default="1,5,10,20", help="number of identities of the request, row by row")
    parser.add_argument("--strength", type=float, help="factor of the keys; as prepared by default")
    parser.add_argument("--artefact", help="folder of the keys, if it is not in the run")
    parser.add_argument("--vault", help="folder of their secrets; your own vault by default")
    given: Any = parser.parse_args()
    run = Run.open(given.run)
    folder = Path(given.artefact) if given.artefact else run.artefact(METHOD)
    prepared = PreparedModel.open(run, folder, Path(given.vault) if given.vault else None, make_accelerator())
    if given.strength is not None:
        prepared = dataclasses.replace(prepared, options=dataclasses.replace(prepared.options, strength=given.strength))
    order = prepared.request_order()
    if not all(1 <= people <= len(order) for people in given.people):
        raise UsageError(f"--people takes numbers from 1 to {len(order)}, the number of identities with a key.")
    print(f"{len(order)} identities have keys; strength {prepared.options.strength}. Score in percent and loss, before -> after:")
    print(f"{'people':>6}  {'forget identities':<32}  {'retain identities':<32}  {'unseen identities (test)':<32}", flush=True)
    for people in given.people:
        single = people == 1
        requests = [[person] for person in order[:SINGLE]] if single else [order[:people]]
        rows = [prepared.before_and_after(request) for request in requests]
        print(format_row(people, torch.stack(rows).mean(dim=0)), flush=True)
        if single:
            after = sorted(row[0, 1, 1].item() for row in rows)
            print(f"{'':>6}  mean of {len(rows)} requests of one identity each; forget losses after: {after[0]:.2f} to {after[-1]:.2f}")
    weights, logits = prepared.order_differences(order[:IN_ORDER])
    print(f"The first {len(order[:IN_ORDER])} one by one, in reverse, and at once: weights differ by {weights:.1e}, logits by {logits:.1e}")


if __name__ == "__main__":
    try:
        main()
    except OneshuiError as error:
        sys.exit(str(error))
