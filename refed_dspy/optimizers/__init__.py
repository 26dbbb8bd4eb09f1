"""Compiling: a whole program's prompts tuned under one budget, and the gain proved. compile.py begins it, steps.py has
the order, dspy_optimizers.py DSPy's optimizers by name, beats_baseline.py the metric, gateway.py the calls.
"""
