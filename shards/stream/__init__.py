"""Shards → batches: the order of studies, where each lies, blocks of rows by Ray Data."""
