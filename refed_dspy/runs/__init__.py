"""Long paid work in a folder: runs of synthesis, their plan, estimate and forecast, and statistics of a data set."""
