"""Tools for every layer, independent of captures: arrays, files, text, threads."""
