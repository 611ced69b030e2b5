"""Faces: reading them into one schema, splitting them by identity, and serving their pixels."""
