"""Analyse Nsight Systems exports with polars: open, decode, attribute, check, write. Needs no torch, vllm or CUDA.

``load`` reads a results folder back (docs/how-to/load-results.md); docs/development/architecture.md shows the packages.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvtxmoe_analysis.notebook.results import NotebookResults, load
    from nvtxmoe_analysis.outputs.read import Results

__all__ = ["NotebookResults", "Results", "load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` and its results on first use: most modules of the package need neither."""
    name = "Results" if name == "Loaded" else name  # its name up to November 2026
    if name in __all__:
        from nvtxmoe_analysis.notebook import results  # noqa: PLC0415

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
