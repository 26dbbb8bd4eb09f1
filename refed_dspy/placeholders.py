"""Temporary."""

from refed_dspy.filters.refusals import placeholder as placeholder
