"""Long paid work in a folder. synthesize.py (read it first), with plan.py (what is asked next) and
worker.py (asking it); resume.py, estimate.py and forecast.py; compare/, filter/, recycle/ and stats.py for other work.
"""
