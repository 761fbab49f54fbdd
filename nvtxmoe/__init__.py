"""nvtxmoe: which experts, which layers, how many microseconds.

Importing this package imports nothing heavy: no torch, no vllm, no polars.
"""

from typing import TYPE_CHECKING, Any

from nvtxmoe._version import __version__

if TYPE_CHECKING:
    from nvtxmoe.profiler import MoEExpertProfiler

__all__ = ["MoEExpertProfiler", "__version__"]


def __getattr__(name: str) -> Any:
    """The recorder for any PyTorch model, imported when it is asked for."""
    if name == "MoEExpertProfiler":
        from nvtxmoe.profiler import MoEExpertProfiler  # noqa: PLC0415

        return MoEExpertProfiler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
