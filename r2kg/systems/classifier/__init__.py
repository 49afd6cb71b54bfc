"""Findings from films, by CheXpert's names: SwinCheX-like (Taslimi et al. 2022), as AM-MRG trains it for its bank."""
