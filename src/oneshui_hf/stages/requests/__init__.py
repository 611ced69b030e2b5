"""The commands of the request desk that need a model: identify, apply, serve."""
