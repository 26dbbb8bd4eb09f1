"""Intervals and the rule of what is a gain; the small embedding model."""
