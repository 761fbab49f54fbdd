"""The files that ``analyze`` writes: one module each, found by being here. ``registry`` tells what a module has."""
