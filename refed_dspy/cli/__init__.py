"""The command line: one file a group of commands."""

from refed_dspy.cli.main import app, main

__all__ = ["app", "main"]
