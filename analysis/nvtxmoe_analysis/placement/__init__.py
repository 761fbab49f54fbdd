"""Predict what other placements of experts would cost, from the results of one run."""
