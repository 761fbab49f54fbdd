"""Capture validation: one module per check, found by being here. ``registry`` tells what a check's module has."""
