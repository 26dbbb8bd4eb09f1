"""Reading references, data sets and pairs; writing a run's data set."""
