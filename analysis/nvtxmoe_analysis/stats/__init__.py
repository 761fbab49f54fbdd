"""Statistics that know nothing of experts: robust fits, block bootstrap, divergences, multiple testing."""
