"""Code that several methods share: an SGD loop, a step of given length, the KL divergence, importances, covariances, label noise."""
