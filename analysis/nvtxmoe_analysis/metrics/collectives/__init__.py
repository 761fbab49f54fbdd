"""Match collectives across ranks, and split each into waiting and transfer."""
