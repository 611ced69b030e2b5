"""Drop shards: of a model that was trained with `--sharded`, take out the shards of those who ask.

Only the adapters of a shard have ever been trained on its people, so what is left knows nothing of them. It knows nothing of the others
of the same shards either: `oneshui retrain` trains those shards again without who asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshui_hf.methods import Context, DataAccess, Method, Needs, OneshuiError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from oneshui_hf.methods import Artefact, Request


@dataclass(frozen=True)
class DropShardOptions:
    """There is nothing to choose."""


class DropShard(Method[DropShardOptions]):
    """The same model without some of its shards."""

    summary = "drops the adapters that were trained on those who ask, of a model trained with --sharded"
    paper = "Bourtoule et al., Machine Unlearning, IEEE S&P 2021: its shards, without training them again"
    needs = Needs(apply=frozenset({"support"}))
    options = DropShardOptions
    sharded = True

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: DropShardOptions, context: Context
    ) -> nn.Module:
        """Return the model without the shards of those who ask; a shard that was dropped before is gone already."""
        from oneshui_hf.methods import ShardedClassifier, shard_of, without

        if not isinstance(model, ShardedClassifier):
            raise UsageError("This model has no shards; train one with `oneshui train --sharded`.")
        request: Request = data.support
        if None in request.people:
            raise UsageError("A shard belongs to people by their names, so say who is on the photo with --identity.")
        recipe = model.config
        theirs = {shard_of(str(person), recipe.seed, recipe.of) for person in request.people} & set(recipe.shards)
        if len(theirs) == len(recipe.shards):
            raise OneshuiError(
                f"Those who ask are in all {len(theirs)} shards of this model, so dropping theirs would leave nothing; "
                "train those shards anew with `oneshui retrain`."
            )
        context.report |= {"shards": len(recipe.shards) - len(theirs), "shards_dropped": len(theirs)}
        return without(model, theirs)
