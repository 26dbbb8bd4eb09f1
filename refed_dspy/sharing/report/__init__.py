"""The page that shows a run: what was made, why each row looks as it does, what it cost."""
