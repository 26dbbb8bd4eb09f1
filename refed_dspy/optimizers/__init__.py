"""Tuning a whole program's prompts: the metric, the optimizers behind one name each, and the proof."""
