"""Training: the loop, its checkpoints, and the shards of a sharded model."""
