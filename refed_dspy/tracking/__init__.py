"""MLflow as a copy of what a folder holds.

Everything that is tracked is in the folder of a run or compile already. This package copies it to MLflow, as often as
one likes, and notes in the folder what was copied. So a server that is away costs nothing but a warning, and
`refed track DIR` copies the rest later.
"""
