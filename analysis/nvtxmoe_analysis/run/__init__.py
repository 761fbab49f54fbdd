"""Put the facts of all captures of one run together: ranks, groups, placements."""
