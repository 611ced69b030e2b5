"""What several methods share: an SGD loop, a step of given length, divergences, parameter importances, input covariances."""
