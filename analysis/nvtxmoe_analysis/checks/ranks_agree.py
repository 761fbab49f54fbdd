"""What moe.meta says of ranks agrees with itself and with the payloads."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe_analysis.checks.check import Check, JsonValue, failed, not_applicable, passed
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.run.parallel_groups import data_parallel_size

ORDER = 32
EXPORTS_ONLY = False

NAME = "ranks_agree"
#: Contradictions that a message contains.
MOST_TOLD = 3


def check(results: RunMetrics) -> Check:
    """Ranks lie below their sizes, sizes divide one another, and payloads carry the rank of their moe.meta."""
    contradictions: list[str] = []
    processes = 0
    for report in results.reports:
        for pid, meta in report.metas.items():
            processes += 1
            contradictions += _of_meta(meta)
            contradictions += _of_payloads(report, pid, meta)
    evidence: dict[str, JsonValue] = {"processes": processes, "contradictions": len(contradictions)}
    if contradictions:
        more = f"; and {len(contradictions) - MOST_TOLD:,} more" if len(contradictions) > MOST_TOLD else ""
        return failed(NAME, f"Ranks contradict one another: {'; '.join(contradictions[:MOST_TOLD])}{more}.", **evidence)
    if not processes:
        return not_applicable(NAME, "No moe.meta contains ranks.", **evidence)
    return passed(NAME, f"Ranks and sizes of {number(processes, 'process', 'processes')} agree.", **evidence)


def _of_meta(meta: Meta) -> Iterator[str]:
    where = f"rank {meta.rank}"
    if meta.rank >= meta.world_size:
        yield f"{where} of world_size {meta.world_size}"
    if meta.tp_rank >= meta.tp_size:
        yield f"{where} has tp_rank {meta.tp_rank} of tp_size {meta.tp_size}"
    elif meta.tp_rank != meta.rank % meta.tp_size:
        yield f"{where} has tp_rank {meta.tp_rank}, not {meta.rank % meta.tp_size} (tp_size {meta.tp_size})"
    if meta.world_size % meta.tp_size:
        yield f"{where} has tp_size {meta.tp_size}, which does not divide world_size {meta.world_size}"
    for kind in ("ep", "dp"):
        rank, size = meta.raw.get(f"{kind}_rank"), meta.raw.get(f"{kind}_size")
        if type(rank) is int and type(size) is int and not 0 <= rank < max(1, size):
            yield f"{where} has {kind}_rank {rank} of {kind}_size {size}"
    needed = meta.tp_size * data_parallel_size(meta)
    if needed > meta.world_size and meta.world_size % meta.tp_size == 0:
        yield f"{where} has tp_size {meta.tp_size} x {needed // meta.tp_size} data-parallel ranks, more than world_size"


def _of_payloads(report: CaptureFacts, pid: int, meta: Meta) -> Iterator[str]:
    for event, frame in (
        ("moe.step", report.steps),
        ("moe.counts", report.events.counts.cells),
        ("moe.physical", report.events.physical.cells),
        ("moe.pairs", report.events.pairs.spans),
    ):
        other = frame.filter(pid=pid)["rank"].drop_nulls().unique().sort()
        wrong = [rank for rank in other.to_list() if rank != meta.rank]
        if wrong:
            yield f"{event} of rank {wrong[0]} from the process whose moe.meta has rank {meta.rank}"
