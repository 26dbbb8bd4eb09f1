"""Filters over a data set that is there: kept rows, dropped rows with the reason and the score, and a funnel."""
