"""Capture validation: one module a check, each a ``check(results) -> Check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvtxmoe_analysis.checks import (
    blobs_present,
    capture_healthy,
    clocks_agree,
    collectives_seen,
    copies_counted_once,
    counts_have_steps,
    counts_sum,
    cuda_tracing,
    gpu_clock,
    graph_nodes,
    graph_tracing,
    journals_agree,
    journals_whole,
    kernels_named,
    launches_have_work,
    layer_shapes_agree,
    layers_have_work,
    local_experts_agree,
    meta_present,
    one_model,
    operations_once,
    operations_placed,
    pairs_agree,
    profiler_warnings,
    ranges_nest,
    ranks_agree,
    ranks_in_step,
    ranks_present,
    reports_read,
    samples_present,
    steps_closed,
    steps_consecutive,
    steps_have_counts,
    steps_in_order,
    tensor_parallel_copies,
    tokens_agree,
    topk_agrees,
    unique_keys,
    words_whole,
)
from nvtxmoe_analysis.checks.check import FAIL, Check, not_applicable
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

#: In the order in which people read them.
CHECKS: Sequence[Callable[[RunMetrics], Check]] = (
    reports_read.check,
    meta_present.check,
    ranks_present.check,
    ranks_agree.check,
    copies_counted_once.check,
    one_model.check,
    layer_shapes_agree.check,
    local_experts_agree.check,
    blobs_present.check,
    words_whole.check,
    journals_whole.check,
    journals_agree.check,
    capture_healthy.check,
    steps_closed.check,
    unique_keys.check,
    steps_in_order.check,
    steps_consecutive.check,
    ranks_in_step.check,
    steps_have_counts.check,
    counts_have_steps.check,
    counts_sum.check,
    tokens_agree.check,
    topk_agrees.check,
    samples_present.check,
    pairs_agree.check,
    tensor_parallel_copies.check,
    cuda_tracing.check,
    graph_tracing.check,
    launches_have_work.check,
    layers_have_work.check,
    graph_nodes.check,
    ranges_nest.check,
    operations_placed.check,
    operations_once.check,
    kernels_named.check,
    gpu_clock.check,
    collectives_seen.check,
    clocks_agree.check,
    profiler_warnings.check,
)

#: Those that look at what only an export of nsys holds.
OF_EXPORTS = frozenset({
    blobs_present.check,
    words_whole.check,
    steps_closed.check,
    cuda_tracing.check,
    graph_tracing.check,
    launches_have_work.check,
    layers_have_work.check,
    graph_nodes.check,
    ranges_nest.check,
    operations_placed.check,
    collectives_seen.check,
    clocks_agree.check,
    profiler_warnings.check,
    operations_once.check,
    kernels_named.check,
    gpu_clock.check,
})  # fmt: skip

COMPLETE, INCOMPLETE = "complete", "incomplete"


def run_checks(results: RunMetrics) -> list[Check]:
    """Every check, on the whole capture, whatever was selected."""

    def run(check: Callable[[RunMetrics], Check]) -> Check:
        if results.direct and check in OF_EXPORTS:
            name = check.__module__.rpartition(".")[2]
            return not_applicable(name, "Direct mode records no ranges and no GPU work.")
        return check(results)

    return list(ordered_map(run, CHECKS))


def verdict(checks: Sequence[Check]) -> str:
    """``complete``, or ``incomplete`` when any check failed."""
    return INCOMPLETE if any(check.status == FAIL for check in checks) else COMPLETE
