"""The verbs of a study's way. `r2kg VERB` and `python -m jobs.VERB` are the same."""
