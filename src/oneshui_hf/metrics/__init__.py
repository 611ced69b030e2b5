"""Metrics: plain functions on tensors, and the same as `evaluate.Metric`."""
