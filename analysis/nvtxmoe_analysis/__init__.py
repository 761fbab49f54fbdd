"""Analyse Nsight Systems exports with polars: open, decode, attribute, check, write. Needs no torch, vllm or CUDA.

``load`` reads a results folder back (docs/how-to/load-results.md); docs/development/architecture.md shows the packages.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvtxmoe_analysis.outputs.read import Results, load

__all__ = ["Results", "load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` and ``Results`` on first use: most modules of the package need neither."""
    name = "Results" if name == "Loaded" else name  # its name up to November 2026
    if name in __all__:
        from nvtxmoe_analysis.outputs import read  # noqa: PLC0415

        return getattr(read, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
