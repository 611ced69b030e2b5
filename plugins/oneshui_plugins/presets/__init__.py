"""Presets of the methods, as JSON files."""
