"""Findings from films over a graph of findings: SentKG's classifier (Zhang et al. 2020), which CKNet's matrix is of."""
