"""Presets of the methods, as data."""
