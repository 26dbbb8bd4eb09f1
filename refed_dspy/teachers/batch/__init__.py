"""Batches as a transport: engine.py (what waits), tracker.py (upload to last answer), service.py and what it opens."""
