"""A model's answers to a file of prompts, in the formats of benchmarks."""
