"""`python -m refed_dspy.cli`."""

from refed_dspy.cli import main

main()
