"""Two runs side by side: what differs, by how much, and whether steps scatter too much to say so."""
