"""Scores of trained networks, their predictions, and export."""
