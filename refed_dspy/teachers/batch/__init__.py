"""A provider's Batch API as a transport: engine.py, collector.py (what waits), tracker.py (upload to last
answer), service.py (HTTP)."""
