"""Paid work of any kind: job.py opens its folder, work.py says what it is and what is left of its caps, session.py has
its models at work."""
