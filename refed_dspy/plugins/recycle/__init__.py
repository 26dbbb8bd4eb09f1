"""Reflection-Tuning over any instruction data set: each pair recycled, and the paper's table of old and new figures."""
