"""What every layer uses and what knows nothing of captures: arrays, files, text, threads."""
