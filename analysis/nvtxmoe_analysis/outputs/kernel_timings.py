"""moe_kernel_timings: in-layer operations by name."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.results import Results


def build(results: Results) -> pl.DataFrame:
    """One row a rank, layer, phase, name and way of launch; the longest first within a layer.

    Columns: ``rank``, ``layer_idx``, ``phase`` (route, dispatch, experts, combine, shared, collective, or other: in
    the layer but in no phase), ``kernel_name`` (demangled; copies and memsets as ``nsys stats`` spells them),
    ``launched_by``, ``count``, ``total_ns``, ``mean_ns``, ``min_ns``, ``max_ns``.
    """
    return results.kernels
