"""AlpacaEval: its official code, prompt and parser, with a judge of our own settings."""
