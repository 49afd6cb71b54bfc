"""What writes predictions: actors with the model, their files, and what further protocols need."""
