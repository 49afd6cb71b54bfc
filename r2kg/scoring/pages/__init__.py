"""Predictions for people: pictures of what a report took, and a page of studies with films and both reports."""

PICTURES = "knowledge"
"""Beside predictions.jsonl: a PNG a study, KEY.png. It shows the film and the report, and is kept as these are."""
