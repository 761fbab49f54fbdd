"""Show results in the terminal."""
