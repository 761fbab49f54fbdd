"""Compute figures from the facts of a run: balance, correlation, models, waiting."""
