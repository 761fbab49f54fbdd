"""Test before a capture whether it can work on this machine: `nvtxmoe doctor`."""
