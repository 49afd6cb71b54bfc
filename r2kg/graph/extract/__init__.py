"""From reports to annotations: three extractors behind one interface, and the job that runs one over shards."""
