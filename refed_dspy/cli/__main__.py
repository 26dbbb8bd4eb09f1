"""`python -m refed_dspy.cli`."""

from refed_dspy.cli import main

if __name__ == "__main__":
    main()
