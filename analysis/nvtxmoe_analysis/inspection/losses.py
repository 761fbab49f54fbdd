"""What an export lacks as far as can be told without reading its CUDA tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from nvtxmoe_analysis.checks.capture_healthy import sentences
from nvtxmoe_analysis.events.decode import Events
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.facts.expected_cells import counted_cells
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

_WORRYING = r"(?i)might not have been collected|\bnot all\b|\bdropped\b|\blost\b"


def losses(export: Export, events: Events | None, operations: int, calls: int, graph_tracing: str) -> list[str]:
    """Why the capture can't be whole, one sentence each.

    Parameters:
        events: null when they couldn't be read.
        operations: number of GPU operations.
        calls: number of CUDA API calls.
        graph_tracing: see ``inspect.Inspected``.
    """
    found = _unread(export, events) + event_losses(events) if events else []
    if not operations and not calls:
        found.append("no CUDA activity was recorded; capture with -t cuda,nvtx")
    elif not operations:
        found.append(f"{calls:,} CUDA calls but no GPU operation")
    elif not calls:
        found.append(f"{operations:,} GPU operations but no CUDA call, so none can be placed in a step")
    if graph_tracing == "graph":
        found.append("CUDA graphs were traced as a whole, without their kernels; capture with --cuda-graph-trace=node")
    elif graph_tracing not in {"node", "none used", "unknown"}:
        found.append(
            "CUDA graphs were launched but none of their nodes recorded; capture with --cuda-graph-trace=node, from "
            "before the graphs are made"
        )
    return found


def _unread(export: Export, events: Events) -> list[str]:
    found = []
    if count := events.problems["blobs_missing"]:
        remedy = (
            "export again with --include-blobs=true"
            if export.has_blob_column()
            else "this version of nsys has no column for them"
        )
        found.append(f"{_number(count, 'event')} lost the payload: {remedy}")
    if count := events.problems["words_truncated"] + events.problems["words_damaged"]:
        found.append(f"{_number(count, 'payload')} spelled as words broke off")
    return found


def event_losses(events: Events) -> list[str]:
    """What the events of an export, or of a session of direct mode, lack."""
    found = [text.rstrip(".") for text in sentences(list(events.capture_states().values()))]
    if events.steps.is_empty():
        found.append("no step: nothing was scheduled while the capture ran")
    if count := events.steps["end"].null_count() * (not events.journals):
        found.append(f"{_number(count, 'step')} still open when the capture ended")
    silent = sorted(set(events.steps["pid"].to_list()) - set(events.metas))
    found += [f"{process_name(pid, silent)} has steps but no moe.meta" for pid in silent]
    cells = counted_cells(events, events.steps)
    if absent := len(cells.join(events.counts.cells, on=["pid", "step", "layer"], how="anti")):
        found.append(f"{absent:,} of {len(cells):,} (rank, step, layer) have no counts")
    return found


def missing_ranks(metas: Sequence[Meta]) -> list[str]:
    """Ranks that the world size promises but no input has; runs are told apart by ``run_id`` where it is there."""
    runs: dict[str, list[Meta]] = defaultdict(list)
    for meta in metas:
        runs[str(meta.raw.get("run_id", ""))].append(meta)
    return [
        f"run {run_id}: {text}" if len(runs) > 1 else text
        for run_id, members in sorted(runs.items())
        for text in _rank_losses(members)
    ]


def _rank_losses(members: Sequence[Meta]) -> list[str]:
    found = []
    sizes = sorted({meta.world_size for meta in members})
    ranks = Counter(meta.rank for meta in members)
    if len(sizes) > 1:
        found.append(f"processes disagree on the world size: {', '.join(map(str, sizes))}")
    absent = sorted(set(range(sizes[-1])) - set(ranks))
    if absent:
        listed = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
        found.append(f"world_size says {_number(sizes[-1], 'rank')}, {len(ranks)} found (without {listed})")
    repeated = sorted(rank for rank, times in ranks.items() if times > 1)
    if repeated:
        found.append(f"more than one process says to be rank {', '.join(map(str, repeated))}: these are several runs")
    return found


def reservations(export: Export) -> list[str]:
    """Diagnostics of nsys that speak of lost events. Captures with one have been found whole."""
    texts = export.read(nsys_tables.DIAGNOSTICS)["text"].drop_nulls()
    return [f"nsys says: {text}" for text in sorted(set(texts.filter(texts.str.contains(_WORRYING)).to_list()))]


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
