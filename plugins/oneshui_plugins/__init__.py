"""The unlearning methods that ship with oneshui. Each is registered like any third-party plugin."""
