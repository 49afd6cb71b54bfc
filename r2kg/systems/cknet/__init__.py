"""CKNet (Kang et al. 2023): a frozen knowledge matrix that film and words ask alike, before R2Gen's Transformer."""
