"""A provider's Batch API as a transport: engine.py (what waits), tracker.py (upload to last answer), service.py."""
