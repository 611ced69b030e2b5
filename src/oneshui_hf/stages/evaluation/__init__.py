"""The parts of evaluation: predictions, reference models, the cache of models, and relearning time."""
