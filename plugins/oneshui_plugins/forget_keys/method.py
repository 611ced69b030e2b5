"""Forget keys: while training data exists, train a low-rank weight update for every identity that makes the identity an unseen one.

What a model memorised of an identity's photos cannot be computed from a new photo, but it can be prepared. A key is a few rank-one terms
per weight (`low_rank`), trained jointly with the keys of other identities (`training`) so that the model's logits for the identity's photos
become those of an unseen identity (`target_logits`), and stored as integers of a few bits (`quantization`). A request merges the keys of
the forget identities into the weights, and reads no others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oneshui_hf.methods import Context, Cost, DataAccess, Method, Needs, UsageError

from .options import ForgetKeysOptions

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact, FaceSet, Request

    from .target_logits import LabelledLogits
    from .targets import Targets


class ForgetKeys(Method[ForgetKeysOptions]):
    """A low-rank weight update per identity, trained before any request."""

    summary = "adds the low-rank weight update that was prepared for the identity on the photo"
    paper = "none: this project's own"
    needs = Needs(prepare=frozenset({"train", "val"}), apply=frozenset({"support"}))
    options = ForgetKeysOptions
    prepares = "required"
    sequential = True
    per_identity = True
    in_demo = True

    def prepare(self, model: nn.Module, data: DataAccess, options: ForgetKeysOptions, context: Context) -> Artefact:
        """Train the keys of all training identities that requests may contain."""
        import torch

        from oneshui_hf.methods import Artefact, generator

        from .batches import TrainingData
        from .cross_fit import require_folds
        from .inference import predict_both_versions
        from .low_rank import target_layers, with_photo_batches
        from .quantization import key_bytes
        from .training import train_updates

        train, val, identities = data.train, data.val, _identities_to_prepare(data)
        if options.targets == "cross-fit":
            require_folds(train, options)
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        noise = torch.randn(2, *train.batch(torch.tensor([0]))[0].shape[1:], generator=generator(context.seed, "layout"))
        layers = with_photo_batches(frozen, target_layers(frozen, options.target_fraction), noise.to(context.device))
        if fixed := sum(not users for users in layers.values()):
            context.reporter.note(
                f"Keys leave {fixed} of {len(layers)} weights of {type(model).__name__} unchanged: their inputs are not batches of photos."
            )
        train_logits, val_logits = (predict_both_versions(frozen, faces, context) for faces in (train, val))
        targets = _make_targets(frozen, train, val, val_logits, options, context)
        training_data = TrainingData(train, val, train_logits, val_logits, targets, options, context.task, context.seed)
        keys, history = train_updates(frozen, layers, training_data, identities, context)
        shapes = matrix_shapes(frozen, layers)
        return Artefact(
            people={train.people[identity]: key for identity, key in keys.items()},
            report={
                "people": len(keys),
                "fold_models": options.folds * options.repeats if options.targets == "cross-fit" else 0,
                "bytes_a_person": key_bytes(shapes, options.rank, options.bits),
                "history": history,
            },
        )

    def cost(self, model: nn.Module, data: DataAccess, options: ForgetKeysOptions, context: Context) -> Cost:
        """Return the photos of all steps; each passes forward and backward once, and forget photos pass forward once more before.

        Before the steps, all photos pass forward, original and mirrored, those of train again for the targets (once per repetition of the
        cross-fit, and those of val once per fold model). After them, the forget photos pass forward in each round of the rescaling.
        """
        from .cross_fit import require_folds
        from .low_rank import target_layers
        from .preconditioner import MAX_PHOTOS
        from .quantization import key_bytes
        from .rescaling import ROUNDS

        identities, train = _identities_to_prepare(data), data.train
        forget = sum(min(options.photos_per_identity, len(train.positions_of[identity])) for identity in identities)
        preconditioning = min(MAX_PHOTOS, len(train))
        per_step = 2 + options.retain_ratio + options.val_ratio
        per_key = key_bytes(matrix_shapes(model, target_layers(model, options.target_fraction)), options.rank, options.bits)
        cross_fits = options.repeats if options.targets == "cross-fit" else 0
        if cross_fits:
            require_folds(train, options)
        return Cost(
            trainings=cross_fits * options.folds,
            training_photos=cross_fits * (options.folds - 1) * len(train),
            forward=2 * (len(train) * (1 + (cross_fits or 1)) + len(data.val) * (1 + cross_fits * options.folds) + preconditioning)
            + (2 * options.steps_per_identity + ROUNDS) * forget,
            backward=2 * (preconditioning + forget) + round(options.steps_per_identity * forget * per_step),
            bytes=len(identities) * per_key,
            memory=self._memory(model, len(identities), options, per_key),
        )

    @staticmethod
    def _memory(model: nn.Module, identities: int, options: ForgetKeysOptions, per_key: int) -> int:
        """Return the bytes of the keys, of the optimizer's state of a cohort, and of the preconditioner, each with float32 numbers."""
        from .low_rank import target_layers
        from .training import PerIdentityAdam

        shapes = matrix_shapes(model, target_layers(model, options.target_fraction))
        adam = PerIdentityAdam.count(shapes, options.rank, min(identities, options.cohort_size))
        preconditioner = sum(out * out + d * d for out, d in shapes.values())
        return identities * per_key + 4 * (adam + preconditioner)

    @classmethod
    def inactive_options(cls, options: ForgetKeysOptions) -> frozenset[str]:
        """Return the options of the targets that are not used."""
        return frozenset({"probe_weight"} if options.targets == "cross-fit" else {"folds", "repeats"})

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: ForgetKeysOptions, context: Context
    ) -> nn.Module:
        """Return the model with the keys of the requested identities merged into its weights."""
        from oneshui_hf.methods import requested_identities

        from .low_rank import merge, target_layers
        from .quantization import dequantize

        assert artefact is not None  # the core refuses to apply a method that was not prepared
        request: Request = data.support
        if request.unseen_identities:
            return copy.deepcopy(model)
        shapes = matrix_shapes(model, target_layers(model, options.target_fraction))
        people = requested_identities(request, artefact, "is no key for")
        updates = [dequantize(artefact.people[person], shapes, options.rank, options.bits) for person in people]
        context.report["keys"] = len(updates)
        return merge(model, updates, options.strength)


def _make_targets(
    model: nn.Module,
    train: FaceSet,
    val: FaceSet,
    val_logits: tuple[LabelledLogits, LabelledLogits],
    options: ForgetKeysOptions,
    context: Context,
) -> Targets:
    """Return the target logits that the options name."""
    import torch

    from .cross_fit import cross_fitted_logits
    from .shallow_probe import shallow_probe_scores
    from .targets import CrossFitTargets, QuantileTargets

    if options.targets == "cross-fit":
        logits = torch.stack([version.logits for version in val_logits])
        return CrossFitTargets(cross_fitted_logits(train, val, logits, options, context))
    probe_scores = shallow_probe_scores(model, train, options.chunk, context)
    return QuantileTargets(train.labels, val_logits, probe_scores, options.probe_weight, context.task.kind, context.seed)


def matrix_shapes(model: nn.Module, layers: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the shape (out, d) of each weight that keys update, taken as a matrix."""
    weights = dict(model.named_parameters())
    return {name: (len(weights[name]), weights[name][0].numel()) for name in layers}


def _identities_to_prepare(data: DataAccess) -> list[int]:
    """Return the training identities that requests may contain.

    Raises:
        UsageError: There are none.
    """
    identities = [identity for identity in sorted(data.train.positions_of) if identity not in data.train.excluded_from_simulation]
    if not identities:
        raise UsageError("The split excludes all training identities from preparation, so there is no identity to train a key for.")
    return identities
