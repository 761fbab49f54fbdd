"""Estimate what a capture takes on disk."""
