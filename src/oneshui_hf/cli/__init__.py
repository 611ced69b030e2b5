"""The command line: options in, one stage called, result printed. Nothing heavy is imported before a command runs."""

from .app import main

__all__ = ["main"]
