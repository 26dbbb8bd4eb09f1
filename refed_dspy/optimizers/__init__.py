"""Tuning the prompts of a program."""
