"""Studies of more than one run: ablations, comparisons and, to come, sweeps and tables."""
