"""Presentation of metrics: columns, means over seeds, tables as text, figures."""
