"""Forget keys: while training data exists, learn for every person a small change of weights that makes them a stranger.

What a model memorised of a person's pictures cannot be read off a new picture of them, but it can be prepared. A key is a few rank-one
terms a weight (`keys.factors`), learned together with the keys of others with whom it may be used (`keys.learning`) so that the model says
of the person's photos what it would say of strangers' (`keys.strangers`), and kept as whole numbers of a few bits (`keys.codes`). A request
adds the keys of those who ask to the weights, and reads no others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, UsageError

from .options import ForgetKeysOptions

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact, Request


class ForgetKeys(Method[ForgetKeysOptions]):
    """A small change of weights for every person, learned beforehand."""

    summary = "adds the change of weights that was prepared for the person on the photo"
    paper = "none: this project's own"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = ForgetKeysOptions
    prepares = "required"
    sequential = True
    personal = True
    in_demo = True

    def prepare(self, model: nn.Module, data: DataAccess, options: ForgetKeysOptions, context: Context) -> Artefact:
        """Learn the keys of all training people who may ask."""
        from oneshui_hf.methods import Artefact

        from .batches import Lessons
        from .inference import as_it_is_and_mirrored
        from .low_rank import keyed
        from .quantization import size
        from .shallow_probe import guesses
        from .training import learn

        train, val = data.train, data.val
        still = copy.deepcopy(model).eval().requires_grad_(False)
        layers = keyed(still, options.share)
        known, strange = (as_it_is_and_mirrored(still, faces, context) for faces in (train, val))
        lessons = Lessons(train, val, known, strange, guesses(still, train, options.chunk, context), options, context.task, context.seed)
        codes, history = learn(still, layers, lessons, _people(data), context)
        shapes = matrices(still, layers)
        return Artefact(
            people={train.people[person]: part for person, part in codes.items()},
            report={"people": len(codes), "bytes_a_person": size(shapes, options.rank, options.bits), "history": history},
        )

    def cost(self, model: nn.Module, data: DataAccess, options: ForgetKeysOptions, context: Context) -> Cost:
        """Return the photos of all steps; each is differentiated once, and those of who asks are looked at once more before.

        Before the steps all photos are looked at, as they are and mirrored, those of train twice (their first layers, too), and after them
        come the rounds in which keys get their lengths.
        """
        from .low_rank import keyed
        from .preconditioner import LOOKED_AT
        from .quantization import size
        from .rescaling import ROUNDS

        people, train = _people(data), data.train
        forget = sum(min(options.photos, len(train.positions_of[person])) for person in people)
        looked_at = min(LOOKED_AT, len(train))
        a_step = 2 + options.retain + options.val
        a_key = size(matrices(model, keyed(model, options.share)), options.rank, options.bits)
        return Cost(
            forward=2 * (2 * len(train) + len(data.val) + looked_at) + (2 * options.visits + ROUNDS) * forget,
            backward=2 * (looked_at + forget) + round(options.visits * forget * a_step),
            bytes=len(people) * a_key,
        )

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: ForgetKeysOptions, context: Context
    ) -> nn.Module:
        """Return the model with the keys of those who ask added to its weights."""
        from .low_rank import keyed, opened
        from .quantization import decode

        assert artefact is not None  # the core refuses to apply what was not prepared
        request: Request = data.support
        if request.strangers:
            return copy.deepcopy(model)
        shapes = matrices(model, keyed(model, options.share))
        keys = [decode(artefact.people[person], shapes, options.rank, options.bits) for person in _asking(request, artefact)]
        context.report["keys"] = len(keys)
        return opened(model, keys, options.strength)


def matrices(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the shape (out, d) of each weight that keys change, taken as a matrix."""
    weights = dict(model.named_parameters())
    return {name: (len(weights[name]), weights[name][0].numel()) for name in layers}


def _people(data: DataAccess) -> list[int]:
    """Return the training people who may ask.

    Raises:
        UsageError: None may.
    """
    people = [person for person in sorted(data.train.positions_of) if person not in data.train.spared]
    if not people:
        raise UsageError("The split spares all training people from preparation, so there is nobody to make a key for.")
    return people


def _asking(request: Request, artefact: Artefact) -> list[str]:
    """Return who asks, each once.

    Raises:
        UsageError: It is not said who somebody is.
        OneshuiError: There is no key for somebody.
    """
    if None in request.people:
        raise UsageError("A key belongs to a person, so say who is on the photo with --identity.")
    people = sorted({person for person in request.people if person is not None})
    if missing := sum(person not in artefact.people for person in people):
        raise OneshuiError(
            f"There is no key for {missing} of the {len(people)} who ask: they are not among the training people who got one, "
            "or theirs has been used and destroyed."
        )
    return people
