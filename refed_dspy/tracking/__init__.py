"""MLflow, as a picture of what lies in a folder.

Everything that is tracked is in a run's or a compile's folder already; what is here copies it to MLflow, as often as
one likes, and writes down beside it what was copied. So a server that is away costs nothing but a warning, and
`refed track DIR` makes up for it.
"""

from refed_dspy.tracking.background import NoTracker, Tracker, tracking

__all__ = ["NoTracker", "Tracker", "tracking"]
