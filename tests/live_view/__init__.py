"""Tests of ``nvtxmoe top``."""
