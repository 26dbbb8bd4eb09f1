"""The page that shows a run: what was made, how each row came about, what it cost."""
