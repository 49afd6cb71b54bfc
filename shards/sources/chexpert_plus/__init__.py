"""CheXpert Plus."""
