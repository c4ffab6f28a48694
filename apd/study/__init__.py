"""Recipes, ablations and campaigns: the experiments of the study."""
