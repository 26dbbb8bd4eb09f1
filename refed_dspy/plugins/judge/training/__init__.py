"""Training a judge on people's verdicts: what is held out, what is asked, what is fitted, and what it is worth."""
