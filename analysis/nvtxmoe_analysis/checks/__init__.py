"""Capture validation: one module a check, each a ``check(results) -> Check``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvtxmoe_analysis.checks import (
    blobs_present,
    capture_healthy,
    clocks_agree,
    collectives_seen,
    counts_sum,
    cuda_tracing,
    graph_nodes,
    graph_tracing,
    journals_whole,
    launches_have_work,
    layers_have_work,
    meta_present,
    one_model,
    operation_times,
    operations_placed,
    process_ids,
    profiler_warnings,
    range_times,
    ranges_nest,
    ranks_present,
    reports_read,
    steps_closed,
    steps_have_counts,
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
    process_ids.check,
    ranks_present.check,
    one_model.check,
    blobs_present.check,
    words_whole.check,
    journals_whole.check,
    capture_healthy.check,
    steps_closed.check,
    unique_keys.check,
    steps_have_counts.check,
    counts_sum.check,
    tokens_agree.check,
    topk_agrees.check,
    tensor_parallel_copies.check,
    cuda_tracing.check,
    graph_tracing.check,
    launches_have_work.check,
    layers_have_work.check,
    graph_nodes.check,
    ranges_nest.check,
    range_times.check,
    operation_times.check,
    operations_placed.check,
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
    range_times.check,
    operation_times.check,
    operations_placed.check,
    collectives_seen.check,
    clocks_agree.check,
    profiler_warnings.check,
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
