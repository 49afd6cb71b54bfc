"""Triples and subgraphs of studies, as a side of the shards."""
