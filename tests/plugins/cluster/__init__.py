"""Runs on a cluster: what shards made, gathered."""
