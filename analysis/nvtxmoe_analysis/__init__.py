"""The polars pipeline over Nsight Systems exports: open, decode, attribute, check, write. No torch, vllm or CUDA.

``load`` reads a folder of results back (docs/loading.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvtxmoe_analysis.outputs.read import Results, load

__all__ = ["Results", "load"]


def __getattr__(name: str) -> Any:
    """``load`` and ``Results``, imported when they are asked for: modules here import the package, and need neither."""
    name = "Results" if name == "Loaded" else name  # its name up to November 2026
    if name in __all__:
        from nvtxmoe_analysis.outputs import read  # noqa: PLC0415

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
