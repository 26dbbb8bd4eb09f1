"""Runs `show_result.py` in the working folder, whose bootstraps draw from NumPy's generator without a seed.

It is run by path, by the benchmark's Python: `seeded.py ARGUMENTS…`.
"""

from __future__ import annotations

import runpy

import numpy

SEED = 0

if __name__ == "__main__":
    numpy.random.seed(SEED)
    runpy.run_path("show_result.py", run_name="__main__")
