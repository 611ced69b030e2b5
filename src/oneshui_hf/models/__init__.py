"""Image classifiers: loading and saving, predictions and features, and sharded models."""
