"""Compare two results: differences, their intervals, and whether they exceed the scatter between steps."""
