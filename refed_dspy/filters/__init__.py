"""What is kept of a data set, and why the rest is dropped: always with a reason, and a score where there is one.

base.py says what a filter is, then there is a file for each; build.py makes them from settings, screening.py applies
them inside a run.
"""
