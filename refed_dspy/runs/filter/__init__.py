"""Filters over an existing data set: kept rows, dropped rows with the reason and the score, and a funnel."""
