"""References in, data set out."""
