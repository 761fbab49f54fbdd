"""Look at what an export holds before any analysis."""
