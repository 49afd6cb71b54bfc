"""The knowledge graph of the training reports: annotated, put together, sampled, embedded."""
