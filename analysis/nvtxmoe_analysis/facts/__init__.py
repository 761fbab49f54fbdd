"""The facts of one capture: typed tables by (rank, step, layer), filtered as the user asked."""
