"""The commands of ``nvtxmoe``, a module each."""
