"""What is kept of a data set, and why the rest is not: kept / dropped, always with the reason and the score."""
