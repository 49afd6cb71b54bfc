"""WebDataset archives that others wrote."""
