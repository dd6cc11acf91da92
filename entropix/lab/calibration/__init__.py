"""Thresholds of the entropix rule, fitted to what a model does."""
