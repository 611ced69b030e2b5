"""MetaUnlearn: while training data exists, train a loss whose gradient step on a support image makes the model forget that person.

De Min, Mancini, Lathuiliere, Roy, Ricci: "Unlearning Personal Data from a Single Image", TMLR 2025. `loss_network` has the mathematics,
`objectives` the meta-objectives, `training` the training.
The preset `paper` is the original recipe. The defaults differ where that is known to be wrong or unsafe: the step has a given length,
learned and then selected on simulated requests; all parameters are updated; requests of varied size are simulated; an identity without an
embedding uses an 'unknown' row; and the simulated support image is one that the model was not trained on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, OneshuiError, UsageError

from .options import MetaUnlearnOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oneshui_hf.methods import Artefact, Request, SimulatedRequest

TRAINED, INITIAL = "learned", "drawn"  # names of an identity's embedding: whether it was in a simulated request, so that its row is trained


class MetaUnlearn(Method[MetaUnlearnOptions]):
    """A step on a learned loss."""

    summary = "takes one step on a loss that was trained for forgetting, on the support images"
    paper = "De Min et al., Unlearning Personal Data from a Single Image, TMLR 2025"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = MetaUnlearnOptions
    prepares = "required"
    presets = ("oneshui_plugins.presets", "metaunlearn.json")

    @classmethod
    def inactive_options(cls, options: MetaUnlearnOptions) -> frozenset[str]:
        """Return `length` and `length_by` for a raw step, `eta` for a normalised one; without held-out identities what is for them."""
        step = {"length", "length_by"} if options.step == "raw" else {"eta"}
        return frozenset(step if options.holdout else step | {"evaluate_every", "early_stopping"})

    def prepare(self, model: nn.Module, data: DataAccess, options: MetaUnlearnOptions, context: Context) -> Artefact:
        """Train phi and the step length on simulated requests, and select the length."""
        from oneshui_hf.methods import Artefact, choose_length

        from .training import MetaLossTrainer, plan_requests

        _check_length(options)
        plan = plan_requests(data, options, context)
        trainer = MetaLossTrainer(model, data, plan, options, context)
        state = trainer.train()
        learned = state.lengths
        length, scale, normalised = math.hypot(*learned), trainer.scale, options.step == "normalised"
        calibration: list[dict[str, Any]] = []
        if normalised and options.calibration:
            length, calibration = choose_length(model, data, partial(trainer.direction, lengths=learned), options, context)
        values: dict[str, Any] = {"length": length / scale}
        shares = [part / scale for part in learned]
        if normalised and options.length_by == "layer":
            values = {"length": length / scale if options.calibration else None, "lengths": shares}
        elif normalised and options.unlearning_steps > 1:  # the direction of several steps depends on their length, that of one does not
            values = {"length": length / scale if options.calibration else None, "walked": shares[0]}
        report: dict[str, Any] = {"meta_steps": len(plan), "history": state.history, "calibration": calibration}
        if trainer.held_out:
            report["held_out"] = {
                "identities": len(trainer.held_out),
                "original": trainer.original_objective,
                "curve": state.curve,
                "kept": state.kept_step(options.early_stopping),
            }
        artefact = Artefact(tensors=trainer.h.state_dict(), values=values, report=report)
        if options.use_identity:
            table = artefact.tensors.pop("embedding.weight")
            artefact.tensors["unknown"] = table[:1]
            artefact.people = {
                data.train.people[person]: {TRAINED if person in trainer.simulated else INITIAL: table[row]}
                for person, row in trainer.rows.items()
            }
        return artefact

    def cost(self, model: nn.Module, data: DataAccess, options: MetaUnlearnOptions, context: Context) -> Cost:
        """Return the photos of all meta-steps, and the selection of the length.

        A Jacobian-vector product counts as one gradient, a Hessian product (one per step except the first) as two.
        """
        from oneshui_hf.methods import length_cost

        from .loss_network import build_loss_network
        from .objectives import sets_after_update, sets_before_update
        from .training import held_out_identities, held_out_requests, plan_requests

        _check_length(options)
        after, before = sets_after_update(options.objective), sets_before_update(options.objective)
        held_out = held_out_identities(data.train, options, context.seed)
        plan = plan_requests(data, options, context)
        evaluations = 1 + math.ceil(len(plan) / options.evaluate_every)
        steps = options.unlearning_steps
        # theta's logits on val are computed once for all requests
        forward = len(data.val) if "val" in before else 0
        backward = 0
        for request in (request for group in plan for request in group):
            images = _images_per_set(request, data, options, held_out)
            forward += sum(images[name] for name in before - {"val"})
            backward += sum(images[name] for name in after) + (2 * steps + 2 * (steps - 1)) * len(request.support)
        for request in held_out_requests(data, options, context):  # also measured for the original model
            images = _images_per_set(request, data, options, held_out)
            forward += sum(images[name] for name in before - {"val"}) + (evaluations + 1) * sum(images[name] for name in after)
            backward += evaluations * steps * len(request.support)
        selection = length_cost(data, options, context) if options.step == "normalised" else Cost()
        network = build_loss_network(model, context, len(data.train.positions_of), options)
        return dataclasses.replace(
            selection,
            forward=selection.forward + forward,
            backward=steps * selection.backward + backward,
            bytes=4 * sum(part.numel() for part in network.parameters()),
        )

    def apply(
        self,
        model: nn.Module,
        data: DataAccess,
        artefact: Artefact | None,
        options: MetaUnlearnOptions,
        context: Context,
    ) -> nn.Module:
        """Return the model after the step, or steps, on the learned loss of the support images."""
        import torch

        from oneshui_hf.methods import displaced, norm, parameters, targets

        from .loss_network import (
            UNKNOWN_ROW,
            StepSize,
            SupportImages,
            build_loss_network,
            step_groups,
            total_update,
            trainable_parameters,
            unlearning_steps,
        )

        assert artefact is not None  # the core requires preparation
        _check_length(options)
        request = data.support
        images = SupportImages(request.pixels, targets(request.labels, context.task))
        known: list[torch.Tensor] = []
        if options.use_identity:
            embeddings = _identity_embeddings(request, artefact, options)
            known = [embedding for embedding in embeddings if embedding is not None]  # only the request's identities are decrypted
            rows = iter(range(1, len(known) + 1))
            images.identity_rows = torch.tensor(
                [UNKNOWN_ROW if embedding is None else next(rows) for embedding in embeddings], device=context.device
            )
        h = build_loss_network(model, context, len(known), options)
        shapes = {name: part.shape for name, part in h.state_dict().items()}
        if options.use_identity:
            shapes["unknown"] = torch.Size([1, shapes.pop("embedding.weight")[1]])
        artefact.require_tensors(shapes)
        state = dict(artefact.tensors)
        if options.use_identity:
            state["embedding.weight"] = torch.cat([state.pop("unknown"), *(embedding.unsqueeze(0) for embedding in known)])
        h.load_state_dict(state)

        scale = norm(parameters(model)).item()
        share = options.length
        if share is None and artefact.values.get("length") is not None:
            share = artefact.number("length")
        theta = trainable_parameters(model, options.update_tokens)
        size = StepSize.raw(options.eta)
        if options.step == "normalised":
            groups = step_groups(theta, options.length_by)
            is_by_layer = options.length_by == "layer"
            lengths = _lengths_by_layer(artefact, len(set(groups.values()))) if is_by_layer else [artefact.number("walked", share)]
            size = StepSize(tuple(length * scale for length in lengths), groups)
        path = unlearning_steps(model, theta, h.to(context.device).eval(), images, context.task.kind, size, options.unlearning_steps)
        update = total_update(path)
        # The update of the path itself or, if a length was selected or given, rescaled to that length.
        length = norm(update).item()
        factor = share * scale / length if options.step == "normalised" and share is not None else 1.0
        context.report["step_length"] = factor * length
        if images.identity_rows is not None:
            context.report["unknown_people"] = int((images.identity_rows == UNKNOWN_ROW).sum())
        return displaced(model, update, -factor)


def _images_per_set(request: SimulatedRequest, data: DataAccess, options: MetaUnlearnOptions, held_out: Collection[int]) -> dict[str, int]:
    """Return the number of images of each set of the objective of a request."""
    forget = min(options.images_per_set, len(request.forget))
    excluded = {*held_out, *request.people}
    retain = len(data.train) - sum(len(data.train.positions_of[person]) for person in excluded)
    return {"forget": forget, "val": min(forget, len(data.val)), "retain": min(forget, retain)}


def _lengths_by_layer(artefact: Artefact, count: int) -> list[float]:
    """Return the learned lengths of the layers, as shares of the model's norm.

    Raises:
        OneshuiError: The artefact does not have one finite number per layer.
    """
    found = artefact.values.get("lengths")
    if not isinstance(found, list) or len(found) != count or not all(isinstance(x, float) and math.isfinite(x) for x in found):
        raise OneshuiError("The artefact is damaged, or not of this model (it does not contain a length for each layer); prepare again.")
    return found


def _check_length(options: MetaUnlearnOptions) -> None:
    """Check that no length is given for a raw step."""
    if options.step == "raw" and options.length is not None:
        raise UsageError("--length applies only to a normalised step; a raw step is --eta times the gradient.")


def _identity_embeddings(request: Request, artefact: Artefact, options: MetaUnlearnOptions) -> list[torch.Tensor | None]:
    """Return the embedding of each support image's identity, or None if the unknown row is used.

    Raises:
        OneshuiError: A named identity has no embedding, or an unnamed one needs the unknown row, which this artefact did not train.
    """
    embeddings: list[torch.Tensor | None] = []
    for person in request.people:
        stored = {} if person is None else artefact.people.get(person)
        if stored is None:
            raise OneshuiError(
                f"Identity '{person}' is not among the {len(artefact.people)} training identities of this artefact; omit --identity."
                if artefact.people
                else "This artefact has no embeddings of identities, so --identity cannot be used; omit it."
            )
        if person is None and options.identity_dropout == 0:
            raise OneshuiError(
                "This artefact was prepared without identity dropout, so it cannot be used for an unnamed identity; "
                "give the name with --identity, or prepare with --identity-dropout 0.5."
            )
        # Without identity dropout the unknown row is not trained, so the identity's own row is used, even an initial one.
        embeddings.append(stored.get(TRAINED, stored.get(INITIAL) if options.identity_dropout == 0 else None))
    return embeddings
