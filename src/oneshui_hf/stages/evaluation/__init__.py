"""The parts of evaluation: predictions, reference models, the cache that holds them, and the relearning test."""
