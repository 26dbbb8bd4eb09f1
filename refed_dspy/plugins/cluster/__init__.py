"""A run on a Ray cluster: shards of references, leases of samples and dollars, workers on nodes."""
