"""Drawn films with exact reports."""
