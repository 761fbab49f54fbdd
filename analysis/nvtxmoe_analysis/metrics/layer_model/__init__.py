"""Fit which feature of the routing explains the time of a layer."""
