"""Raw datasets → shards → batches. Knows nothing of models."""
