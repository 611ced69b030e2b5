"""The parts of forget keys: their mathematics, what they are learned from, and how."""
