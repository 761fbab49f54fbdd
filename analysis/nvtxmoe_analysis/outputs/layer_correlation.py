"""moe_layer_correlation: what the counts say beside what the GPU took, one row a (rank, step, layer)."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """The counts' features joined with GPU time. Times are integer nanoseconds, sums of durations unless they say else.

    - ``rank``, ``step``, ``layer_idx``; ``num_tokens``, ``prefill_tokens``, ``decode_tokens``.
    - Features, null where a cell has no counts: ``top_k``, ``total_activations``, ``active_experts`` (that got a
      token), ``max_count``, ``mean_count``, ``std_dev`` (population), ``max_mean_ratio``, ``block_m`` (rows of an
      expert tile), ``expert_tiles`` (sum over experts of ceil(count / block_m)).
    - ``kernel_count``, ``kernel_time_ns``, ``busy_ns`` (union of intervals), ``launched_by``.
    - ``step_kind``: prefill, decode, mixed, none; null where not known.
    - More features: ``cv`` (std_dev / mean_count), ``entropy_bits``, ``gini`` (see ``features.unevenness``; null
      without assignments), ``block_m_source`` (moe.meta or default, see ``tiles``).
    - The rank's own experts, null where not known (see ``local_load``): ``local_experts`` (how many),
      ``local_activations``, ``local_active_experts``, ``local_max_count``, ``local_expert_tiles``, ``weight_bytes``.
    - Kernel time by phase: ``route_ns``, ``dispatch_ns``, ``experts_ns``, ``combine_ns``, ``shared_ns``,
      ``collective_ns``, ``other_ns``; they add up to kernel_time_ns.
    - ``collective_inferred_ns``: collectives tied to the layer by inference (see ``collectives``), which are not in
      kernel_time_ns. ``own_ns``: kernel_time_ns less collectives; null where the GPU did nothing.
    - Of the whole step on this rank, the same in each of its layers' rows, null where the step has no range:
      ``step_gpu_ns`` (kernels, copies and memsets launched in it) and its parts outside layers, ``step_attention_ns``,
      ``step_collective_ns``, ``step_sampling_ns``, ``step_dense_ns``, ``step_norm_ns``, ``step_memory_ns`` (copies,
      memsets), ``step_recording_ns`` (nvtxmoe's own kernel), ``step_other_ns``, ``step_unplaced_ns`` (that can't be
      placed in a layer or outside); what is left is in layers. ``between_steps_ns``: launched after the step and
      before the process's next. ``step_share_pct``: the layer's kernels, copies and memsets in % of step_gpu_ns.
    """
    return results.correlation
