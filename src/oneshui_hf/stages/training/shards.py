"""Sharded training: each adapter on the people of its own shard, one after the other, and the model of all of them.

What a shard becomes depends on its own people's photos, the pretrained backbone, val, the seed and the recipe, and on nothing of the
people of other shards. So who asks to be forgotten concerns one shard, and the others may be kept as they are.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from ...data.face_set import FaceSet
from ...data.schema import Task
from ...errors import OneshuiError, UsageError
from ...metrics.functional import score
from ...models.load import load_model
from ...models.outputs import predict
from ...models.sharded import Part, ShardedClassifier, assemble, over, part_of, shard_of
from ...options import fields
from ...reporting import Reporter
from ...runs import Run, new_folder, read_json, write_json
from ...seeding import derive
from ..command_options import TrainOptions
from ..distributed import on_main
from .loop import fit

SHARDS = "shards"  # in a run that is being trained: a folder a shard, with its checkpoint and then with what it has learned
WEIGHTS, OUTCOME = "adapter.safetensors", "outcome.json"


def require_adapters(options: TrainOptions) -> None:
    """Check that options of adapters come with adapters.

    Raises:
        UsageError: They do not.
    """
    if not options.sharded and options.adapter_rank != fields(TrainOptions)["adapter_rank"].default:
        raise UsageError("--adapter-rank is of the adapters that --sharded trains; give both, or leave it out.")


class Shards:
    """The shards of a model that is to be trained, each with its people.

    Args:
        backbone: A classifier whose backbone they share.
        size: Side of its photos in pixels.
        faces: The photos to train on.
        options: The recipe; its seed tells who belongs to which shard, and draws adapters and head.
        seed: Of order and augmentation.

    Raises:
        UsageError: The backbone cannot be shared by shards.
    """

    def __init__(self, backbone: PreTrainedModel, size: int, faces: FaceSet, options: TrainOptions, seed: int) -> None:
        assert options.sharded is not None
        self._options, self._seed, self._of, self._faces = options, seed, options.sharded, faces
        self._model = over(backbone, size, self._of, options.adapter_rank, options.seed)
        owners = torch.tensor([self._shard_of(faces, person) for person in faces.identities.tolist()])
        self._positions = {shard: (owners == shard).nonzero().squeeze(1) for shard in sorted(set(owners.tolist()))}
        self._taken: dict[int, tuple[Part, dict[str, Any]]] = {}

    def _shard_of(self, faces: FaceSet, person: int) -> int:
        return shard_of(faces.people[person], self._options.seed, self._of)

    def require_people(self) -> None:
        """Check that every shard has people.

        Raises:
            UsageError: One has none.
        """
        people = sorted(self._faces.positions_of)
        if len(self._positions) == self._of:
            return
        names = [self._faces.people[person] for person in people]
        sizes = {of: Counter(shard_of(name, self._options.seed, of) for name in names) for of in range(2, min(self._of, len(people) + 1))}
        filled = [of for of, counts in sizes.items() if len(counts) == of]
        would = f"--sharded {max(filled)} would give each some" if filled else "train without --sharded"
        raise UsageError(
            f"--sharded {self._of} leaves {self._of - len(self._positions)} shards without any of the {len(people)} people; {would}."
        )

    def take_over(self, original: Run, forget: FaceSet) -> None:
        """Keep the shards of an original model in which nobody asks to be forgotten: trained anew they would become the same.

        Raises:
            OneshuiError: The original is not a model of this recipe, or its backbone is another one by now.
        """
        model = load_model(original.path)[0]
        if not isinstance(model, ShardedClassifier):
            raise OneshuiError(f"{original.path} was trained with --sharded, and its model is none of shards; restore it.")
        if not _same_backbone(model, self._model):
            raise OneshuiError(
                f"The checkpoint {self._options.model} has changed since {original.path} was trained, so its shards cannot be kept; "
                "restore the checkpoint, or train all shards with another --seed."
            )
        told = {row["shard"]: row for row in original.record.report["shards"]}
        touched = {self._shard_of(forget, person) for person in forget.identities.tolist()}
        self._taken = {
            shard: (part_of(model, shard), told[shard] | {"trained": False}) for shard in model.config.shards if shard not in touched
        }

    def fit(
        self, val: FaceSet, task: Task, path: Path, accelerator: Accelerator, reporter: Reporter
    ) -> tuple[ShardedClassifier, dict[str, Any]]:
        """Train every shard that is not there yet; return the model of all, and what became of each.

        A shard for which nobody is left is left out.
        """
        parts: dict[int, Part] = {}
        rows = []
        for number, (shard, positions) in enumerate(self._positions.items(), start=1):
            folder, faces = path / SHARDS / str(shard), self._faces.subset(positions)
            what = f"Shard {number} of {len(self._positions)}"
            if shard in self._taken:
                reporter.info(f"{what}: nobody in it asks, so it is kept.")
                parts[shard], row = self._taken[shard]
            else:
                if not (folder / WEIGHTS).exists():
                    reporter.info(f"{what}: {len(faces)} photos of {len(faces.positions_of)} people.")
                    self._train(shard, faces, val, task, folder, accelerator, reporter)
                parts[shard], outcome = load_file(folder / WEIGHTS), read_json(folder / OUTCOME)
                row = {"shard": shard, "people": len(faces.positions_of), "photos": len(faces), "trained": True, **outcome}
            rows.append(row)
        model = assemble(self._model, parts).to(accelerator.device)
        value = score(predict(model, val, accelerator), val.labels, task)
        trained = sum(row["trained"] for row in rows)
        reporter.info(f"{trained} of {len(rows)} shards were trained; val {task.score_name} of all together: {value:.1f}")
        return model, {"shards": rows, "shards_trained": trained, "epochs": self._options.epochs, f"val_{task.score_name}": value}

    def _train(
        self, shard: int, faces: FaceSet, val: FaceSet, task: Task, folder: Path, accelerator: Accelerator, reporter: Reporter
    ) -> None:
        """Train one shard and write what it has learned, in place of its checkpoints."""
        self._model.begin(shard)
        seed = derive(self._seed, "shard", shard)
        outcome = fit(self._model, faces, val, task, self._options, seed, folder, accelerator, reporter, scored="last")
        part = part_of(self._model, shard)

        def write() -> None:
            with new_folder(folder, replace=True) as scratch:
                save_file(part, scratch / WEIGHTS)
                write_json(scratch / OUTCOME, outcome)

        on_main(accelerator, write)


def _same_backbone(one: ShardedClassifier, other: ShardedClassifier) -> bool:
    learned = part_of(other, other.config.shards[0])
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], tensor) for name, tensor in theirs.items() if name not in learned)
