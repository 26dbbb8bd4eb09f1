"""Arena-Hard: the code of lmarena/arena-hard-auto, from a clone that the user names."""
