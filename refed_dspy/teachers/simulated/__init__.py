"""The simulated teacher: texts from word lists, so that everything can be tried without a key, weights or a server."""
