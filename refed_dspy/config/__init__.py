"""All settings: a class for each kind of work, and how settings are read from files, the environment and keywords."""
