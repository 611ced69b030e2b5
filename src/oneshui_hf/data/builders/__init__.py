"""Builders of the data sets that ship with the package, one a module (a builder's name is its module's)."""
