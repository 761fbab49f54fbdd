"""A running server's live metrics in the terminal: ``nvtxmoe top``."""
