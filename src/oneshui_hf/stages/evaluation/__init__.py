"""The parts of evaluation: predictions, reference models, the cache of models, relearning time, and attacks on weights."""
