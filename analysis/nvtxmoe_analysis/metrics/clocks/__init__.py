"""Put the clocks of several captures on one axis."""
