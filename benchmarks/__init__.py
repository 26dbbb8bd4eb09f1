"""Benchmarks: `python -m benchmarks.NAME`. They tell MLflow nothing, but for the one of what telling it costs."""

import os

os.environ.setdefault("REFED_TRACK", "false")
