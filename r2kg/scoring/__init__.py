"""A trained run to predictions, predictions to scores."""
