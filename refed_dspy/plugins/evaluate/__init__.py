"""Official benchmarks of answers: their own code in an environment of its own, whose judge is asked through us."""
