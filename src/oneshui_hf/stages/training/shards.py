"""Sharded training: one adapter per shard, trained on the shard's identities one after the other, and combined into one model.

An adapter depends on the photos of its shard's identities, the pretrained backbone, val, the seed and the recipe, and not on the
identities of other shards. So a forget request affects only the shards of its identities, and the others are reused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import OneshuiError, UsageError
from ...files import new_folder
from ...metrics.functional import is_scorable, score
from ...models.load import load_model
from ...models.outputs import predict
from ...models.sharded import ShardedClassifier, ShardWeights, combine_shards, shard_of, shard_weights, wrap_backbone
from ...processes import on_main
from ...reporting import Reporter
from ...runs import Run
from ...seeding import derive
from ..command_options import TrainOptions
from . import checkpoint
from .loop import fit

SHARDS = "shards"  # in a run that is being trained: one folder per shard, with its checkpoint and then with its adapter
WEIGHTS, OUTCOME = "adapter.safetensors", "outcome.json"


class Shards:
    """The shards of a model to be trained, each with its identities.

    Args:
        backbone: A classifier whose backbone the shards share.
        size: Side of its input in pixels.
        faces: The training set.
        options: The recipe; its seed assigns identities to shards and initialises adapters and head.
        seed: Seed of order and augmentation.

    Raises:
        UsageError: The backbone does not support adapters.
    """

    def __init__(self, backbone: PreTrainedModel, size: int, faces: FaceSet, options: TrainOptions, seed: int) -> None:
        assert options.sharded is not None
        self._options, self._seed, self._count, self._faces = options, seed, options.sharded, faces
        self._model = wrap_backbone(backbone, size, self._count, options.adapter_rank, options.seed)
        shards = torch.tensor([self._shard_of(faces, person) for person in faces.identities.tolist()])
        self._positions = {shard: (shards == shard).nonzero().squeeze(1) for shard in sorted(set(shards.tolist()))}
        self._reused: dict[int, tuple[ShardWeights, dict[str, Any]]] = {}

    def _shard_of(self, faces: FaceSet, person: int) -> int:
        return shard_of(faces.people[person], self._options.seed, self._count)

    def require_nonempty_shards(self) -> None:
        """Check that every shard has identities.

        Raises:
            UsageError: One has none.
        """
        people = sorted(self._faces.positions_of)
        if len(self._positions) == self._count:
            return
        names = [self._faces.people[person] for person in people]
        candidates = range(2, min(self._count, len(people) + 1))
        filled = [count for count in candidates if len({shard_of(name, self._options.seed, count) for name in names}) == count]
        advice = f"--sharded {max(filled)} fills every shard" if filled else "train without --sharded"
        empty = self._count - len(self._positions)
        raise UsageError(f"--sharded {self._count} leaves {empty} shards without any of the {len(people)} identities; {advice}.")

    def reuse_shards(self, original: Run, forget: FaceSet) -> None:
        """Reuse the shards of an original model without forget identities: training them again would give the same weights.

        Raises:
            OneshuiError: The original is not a sharded model, or the backbone has changed since.
        """
        model = load_model(original.path)[0]
        if not isinstance(model, ShardedClassifier):
            raise OneshuiError(f"{original.path} was trained with --sharded, but its model is not a sharded one; restore it.")
        if not _same_backbone(model, self._model):
            raise OneshuiError(
                f"The checkpoint {self._options.model} has changed since {original.path} was trained, so its shards cannot be reused; "
                "restore the checkpoint, or train all shards with another --seed."
            )
        rows = {row["shard"]: row for row in original.record.report["shards"]}
        affected = {self._shard_of(forget, person) for person in forget.identities.tolist()}
        self._reused = {
            shard: (shard_weights(model, shard), rows[shard] | {"trained": False}) for shard in model.config.shards if shard not in affected
        }

    def fit(
        self, val: FaceSet, task: Task, path: Path, accelerator: Accelerator, reporter: Reporter
    ) -> tuple[ShardedClassifier, dict[str, Any]]:
        """Train every missing shard; return the combined model, and a report with one row per shard.

        Shards without identities are omitted.
        """
        weights: dict[int, ShardWeights] = {}
        rows = []
        for number, (shard, positions) in enumerate(self._positions.items(), start=1):
            folder, faces = path / SHARDS / str(shard), self._faces.subset(positions)
            label = f"Shard {number} of {len(self._positions)}"
            if shard in self._reused:
                reporter.info(f"{label}: no forget identity is in it, so it is reused.")
                weights[shard], row = self._reused[shard]
            else:
                if not ((folder / WEIGHTS).exists() or (folder / OUTCOME).exists()):
                    reporter.info(f"{label}: {len(faces)} photos of {len(faces.positions_of)} identities.")
                    self._train(shard, faces, val, task, folder, accelerator, reporter)
                with checkpoint.reading(folder):
                    outcome = checkpoint.read_sealed(folder / OUTCOME, WEIGHTS)
                    weights[shard] = load_file(folder / WEIGHTS)
                row = {"shard": shard, "people": len(faces.positions_of), "photos": len(faces), "trained": True, **outcome}
            rows.append(row)
        model = combine_shards(self._model, weights).to(accelerator.device)
        trained = sum(row["trained"] for row in rows)
        report: dict[str, Any] = {"shards": rows, "shards_trained": trained, "epochs": self._options.epochs}
        message = f"{trained} of {len(rows)} shards were trained"
        if is_scorable(val.labels, task):
            value = report[f"val_{task.score_name}"] = score(predict(model, val, accelerator), val.labels, task)
            message = f"{message}; val {task.score_name} of the combined model: {value:.1f}"
        reporter.info(message)
        return model, report

    def _train(
        self, shard: int, faces: FaceSet, val: FaceSet, task: Task, folder: Path, accelerator: Accelerator, reporter: Reporter
    ) -> None:
        """Train one shard and replace its checkpoints by its adapter."""
        self._model.initialize_shard(shard)
        seed = derive(self._seed, "shard", shard)
        outcome = fit(self._model, faces, val, task, self._options, seed, folder, accelerator, reporter, validate="last")
        adapter = shard_weights(self._model, shard)

        def write() -> None:
            with new_folder(folder, replace=True) as scratch:
                save_file(adapter, scratch / WEIGHTS)
                checkpoint.write_sealed(scratch / OUTCOME, outcome)

        on_main(accelerator, write)


def _same_backbone(one: ShardedClassifier, other: ShardedClassifier) -> bool:
    adapter = shard_weights(other, other.config.shards[0])
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], tensor) for name, tensor in second.items() if name not in adapter)
