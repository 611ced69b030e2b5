"""Exact head: subtract the photos of the forget identities from the sums that a head in closed form was computed from.

The model is one of `oneshui train --head closed-form`: a frozen backbone, and a linear head that is a function of integer sums over the
training photos. Preparation keeps these sums, and each identity's own integer features. A request subtracts those of its identities and
computes the head again. The sums are then integer for integer those of a training without the identities, so the new model has the bytes
of `oneshui retrain`.

Nothing of the backbone changes: what its own pre-training memorised of a person stays.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, ClosedFormClassifier, FeatureSums, Request


@dataclass(frozen=True)
class ExactHeadOptions:
    """This method has no options."""


class ExactHead(Method[ExactHeadOptions]):
    """The head of a training without the forget identities."""

    summary = "computes the head of a training without the identity, from sums, for a model trained with --head closed-form"
    paper = "none: this project's own; exact removal by sums as in Cao and Yang, Towards Making Systems Forget, IEEE S&P 2015"
    needs = Needs(prepare=frozenset({"train"}), apply=frozenset({"support"}))
    options = ExactHeadOptions
    prepares = "required"
    sequential = True
    per_identity = True
    closed_form = True
    exact = True

    def prepare(self, model: nn.Module, data: DataAccess, options: ExactHeadOptions, context: Context) -> Artefact:
        """Keep the sums over the training photos, and the integer features of every training identity.

        Raises:
            OneshuiError: The head is not that of the training photos.
        """
        import torch

        from oneshui_hf.methods import Artefact, grid_rows, head_hash, is_head_of, sum_rows, targets

        classifier, train = _closed_form(model), data.train
        mirrored = classifier.config.mirrored
        rows = grid_rows(classifier, train, context.accelerator, mirrored=mirrored, reporter=context.reporter)
        labels = targets(train.labels, context.task).to(torch.uint8).repeat(1 + mirrored, 1)
        sums = sum_rows(rows, labels)
        if not is_head_of(classifier, sums, context.accelerator):
            raise OneshuiError(
                "The head of this model is not the one that its training photos give here: it was unlearned, trained further, or computed "
                "on another kind of machine. Train again, or prepare the original model."
            )
        people = {}
        for identity, positions in sorted(train.positions_of.items()):
            own = torch.cat([positions, positions + len(train)]) if mirrored else positions
            people[train.people[identity]] = {"rows": rows[own], "labels": labels[own]}
        return Artefact(
            tensors=sums.tensors(),
            values={"head": head_hash(classifier)},
            people=people,
            report={"people": len(people), "bytes_a_person": round((rows.nbytes + labels.nbytes) / len(people)), "rows": sums.count},
            private=True,
        )

    def cost(self, model: nn.Module, data: DataAccess, options: ExactHeadOptions, context: Context) -> Cost:
        """Return the passes, in float64, which takes about twice as long as in float32, and the bytes of sums and features."""
        config = _closed_form(model).config
        rows, size = (1 + config.mirrored) * len(data.train), config.feature_size
        return Cost(forward=rows, bytes=2 * rows * size + 4 * size * (size + 1))

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: ExactHeadOptions, context: Context
    ) -> nn.Module:
        """Return the model with the head of a training without the requested identities.

        Raises:
            UsageError: The identity of a photo is not given.
            OneshuiError: Nothing is prepared for an identity, or the artefact belongs to another head.
        """
        from oneshui_hf.methods import Artefact, FeatureSums, head_hash, requested_identities, set_head

        assert artefact is not None  # the core refuses to apply a method that was not prepared
        request: Request = data.support
        new = copy.deepcopy(_closed_form(model))
        if request.unseen_identities:
            return new
        if artefact.values.get("head") != head_hash(new):
            raise OneshuiError(
                "The sums are those of another head than this model's, so the result would not be that of a training; apply the method to "
                "the model that they were prepared for, or to the one that the last request made."
            )
        artefact.require_tensors(FeatureSums.shapes(new.config.feature_size, new.config.num_labels))
        sums = FeatureSums.from_tensors(artefact.tensors)
        for person in requested_identities(request, artefact, "are no features of"):
            sums -= _person_sums(artefact, person, new)
        set_head(new, sums, context.accelerator)
        context.successor = Artefact(tensors=sums.tensors(), values={"head": head_hash(new)}, private=True)
        return new


def _closed_form(model: nn.Module) -> ClosedFormClassifier:
    """Return the model.

    Raises:
        UsageError: It has no head in closed form.
    """
    from oneshui_hf.methods import ClosedFormClassifier

    if not isinstance(model, ClosedFormClassifier):
        raise UsageError("This model has no head in closed form; train one with `oneshui train --head closed-form`.")
    return model


def _person_sums(artefact: Artefact, person: str, model: ClosedFormClassifier) -> FeatureSums:
    """Return the sums of one identity's rows.

    Raises:
        OneshuiError: They do not fit the model.
    """
    from oneshui_hf.methods import sum_rows

    rows, labels = _matrix(artefact, person, "rows"), _matrix(artefact, person, "labels")
    if rows.shape[1] != model.config.feature_size or labels.shape != (len(rows), model.config.num_labels):
        raise OneshuiError("The features of a requested identity do not fit this model; prepare again.")
    return sum_rows(rows, labels)


def _matrix(artefact: Artefact, person: str, name: str) -> torch.Tensor:
    parts = artefact.people[person]
    if name not in parts or parts[name].dim() != 2:
        raise OneshuiError("The features of a requested identity are damaged; prepare again.")
    return parts[name]
