"""Builders of the data sets in this package, one per module. The name of a builder is the name of its module."""
