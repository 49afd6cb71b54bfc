"""R2GenKG (arXiv 2508.03426)."""
