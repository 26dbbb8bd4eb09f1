"""The model on this machine: llama.cpp's server in a process beside the run."""
