"""IFEval: answers against instructions that a program can check. Nobody judges, and nothing is paid for."""
