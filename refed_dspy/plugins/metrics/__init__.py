"""What can be measured of a data set: lengths, diversity, coherence, perplexity, win rates."""
