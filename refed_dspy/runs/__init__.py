"""A data set in figures, for a person who has to decide what to do with it."""
