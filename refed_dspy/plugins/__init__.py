"""What stands on the core and can be taken away. The core imports none of it: see refed_dspy/registry.py."""
