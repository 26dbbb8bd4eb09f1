"""Runs: synthesize.py (read it first), plan.py (what is asked next) and worker.py (who asks it); resume.py, estimate.py
and forecast.py; filter/ for filters over any data set."""
