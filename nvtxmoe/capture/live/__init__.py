"""Live metrics: what processes count, added up while they run, and given to Prometheus."""
