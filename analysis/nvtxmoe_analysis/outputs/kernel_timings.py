"""moe_kernel_timings: GPU operations by name, in layers and outside them."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a rank, layer, phase, name and way of launch; the longest first within a layer, then those
    outside layers.

    Columns: ``rank``, ``layer_idx`` (null: outside layers), ``phase``, ``kernel_name`` (demangled; copies and memsets
    as ``nsys stats`` spells them), ``launched_by``, ``count``, ``total_ns``, ``mean_ns``, ``min_ns``, ``max_ns``.

    In a layer ``phase`` is route, dispatch, experts, combine, shared, collective, or other (in the layer but in no
    phase). Outside it is one of ``work.SLOTS``: step_attention, step_collective, step_sampling, step_dense, step_norm,
    step_memory, step_recording, step_other (work of steps, by ``kernel_classes``), step_unplaced, between_steps or
    idle. Those rows are absent where the selection names layers.
    """
    return results.kernels
