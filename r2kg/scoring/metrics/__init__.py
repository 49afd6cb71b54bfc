"""Scores of texts and labels. Nothing here sees a model, an image or a path of the data."""
