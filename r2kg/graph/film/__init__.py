"""Each film's own part of the graph."""

FILMS, OTHERS = "film_subgraphs", "film_subgraphs_of_another"
"""Kinds of the sides that hold it, which are their places below SHARDS/side too: a film's own part; and, for a control,
another study's."""
