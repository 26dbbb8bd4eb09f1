"""Judges and people: agreement, pages on which people judge, and a judge that learns from their verdicts."""
