"""Metrics: functions on tensors, and the same functions as `evaluate.Metric` classes."""
