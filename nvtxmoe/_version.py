"""The version of nvtxmoe."""

__version__ = "0.1.0"
