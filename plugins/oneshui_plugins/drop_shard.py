"""Drop shards: remove the forget identities' shards from a model that was trained with `--sharded`.

Only a shard's own adapters were ever trained on its identities, so the remaining model contains nothing about them. It also loses the other
identities of the same shards: `oneshui retrain` trains those shards again without the forget identities.
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
    """This method has no options."""


class DropShard(Method[DropShardOptions]):
    """The same model without some of its shards."""

    summary = "drops the adapters trained on the forget identities, from a model trained with --sharded"
    paper = "Bourtoule et al., Machine Unlearning, IEEE S&P 2021: its shards, without training them again"
    needs = Needs(apply=frozenset({"support"}))
    options = DropShardOptions
    sharded = True
    exact = True

    def apply(
        self, model: nn.Module, data: DataAccess, artefact: Artefact | None, options: DropShardOptions, context: Context
    ) -> nn.Module:
        """Return the model without the forget identities' shards; shards that were dropped before are ignored."""
        from oneshui_hf.methods import ShardedClassifier, drop_shards, shard_of

        if not isinstance(model, ShardedClassifier):
            raise UsageError("This model has no shards; train one with `oneshui train --sharded`.")
        request: Request = data.support
        if None in request.people:
            raise UsageError("Shards are found by the identity's name; give the name of the person on the photo with --identity.")
        config = model.config
        to_drop = {shard_of(str(person), config.seed, config.of) for person in request.people} & set(config.shards)
        if len(to_drop) == len(config.shards):
            raise OneshuiError(
                f"The forget identities are in all {len(to_drop)} shards of this model, so dropping these would leave nothing; "
                "train the shards again with `oneshui retrain`."
            )
        context.report |= {"shards": len(config.shards) - len(to_drop), "shards_dropped": len(to_drop)}
        return drop_shards(model, to_drop)
