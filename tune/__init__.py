"""Studies of more than one run: ablations and, to come, sweeps and tables."""
