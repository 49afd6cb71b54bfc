"""The systems, a folder each: the part of the configuration, and the model, which is imported when it is built."""
