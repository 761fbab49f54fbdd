"""Whether a capture can work here, found out before it is made: what `nvtxmoe doctor` reports."""
