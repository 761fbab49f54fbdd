"""nvtxmoe: which experts, which layers, how many microseconds.

Importing this package imports nothing heavy: no torch, no vllm, no polars.
"""

__version__ = "0.1.0"
