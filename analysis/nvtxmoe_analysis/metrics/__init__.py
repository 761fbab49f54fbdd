"""Compute tables from the facts of a run: balance, own time, layer models, wait time."""
