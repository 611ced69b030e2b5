"""The unlearning methods that ship with oneshui, one a module. Each is registered like anybody else's plugin."""
