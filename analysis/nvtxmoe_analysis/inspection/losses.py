"""Find what an export lacks, without reading its CUDA tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from nvtxmoe_analysis.checks.capture_healthy import sentences
from nvtxmoe_analysis.checks.cuda_tracing import remedy
from nvtxmoe_analysis.checks.ranks_present import sizes_differ
from nvtxmoe_analysis.checks.steps_closed import no_step
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.events.decode import Events
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.process_lives import process_name
from nvtxmoe_analysis.facts.expected_cells import counted_cells
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

_LOSS_PATTERN = r"(?i)might not have been collected|\bnot all\b|\bdropped\b|\blost\b"


def losses(export: Export, events: Events | None, operations: int, calls: int, graph_tracing: str) -> list[str]:
    """Return the reasons why the capture is incomplete, one sentence each.

    Parameters:
        events: None if they could not be read.
        operations: number of GPU operations.
        calls: number of CUDA API calls.
        graph_tracing: see ``inspect.Inspected``.
    """
    texts = _payload_losses(export, events) + event_losses(events) if events else []
    others = export.other_tables()
    if not (operations and calls) and others:
        texts.append(_lower(remedy(others, None).rstrip(".")))
    elif not operations and not calls:
        texts.append(f"no CUDA activity was recorded. {remedy((), export.cuda_asked()).rstrip('.')}")
    elif not operations:
        texts.append(f"{calls:,} CUDA calls but no GPU operation")
    elif not calls:
        texts.append(f"{operations:,} GPU operations but no CUDA call, so none can be placed in a step")
    if graph_tracing == "graph":
        texts.append("CUDA graphs were traced as a whole, without their kernels; capture with --cuda-graph-trace=node")
    elif graph_tracing not in {"node", "none used", "unknown"}:
        texts.append(
            "CUDA graphs were launched but none of their nodes recorded; capture with --cuda-graph-trace=node, from "
            "before the graphs are made"
        )
    return texts


def _payload_losses(export: Export, events: Events) -> list[str]:
    texts = []
    if count := events.problems["blobs_missing"]:
        remedy = (
            "export again with --include-blobs=true"
            if export.has_blob_column()
            else "this version of nsys has no column for them"
        )
        texts.append(f"{number(count, 'event')} lost the payload: {remedy}")
    if events.damaged:
        texts.append(f"{number(len(events.damaged), 'payload')} can't be read, the first is {events.damaged[0]}")
    if count := events.problems["words_truncated"] + events.problems["words_damaged"]:
        texts.append(f"{number(count, 'payload')} spelled as words broke off")
    return texts


def event_losses(events: Events) -> list[str]:
    """Return what the events of an export or a session lack, one sentence each."""
    texts = [text.rstrip(".") for text in sentences(list(events.capture_states().values()))]
    if events.steps.is_empty():
        texts.append(
            "no moe.step: no step was recorded"
            if events.journals
            else _lower(no_step(events.problems["start_end_steps"]))
        )
    if count := events.steps["end"].null_count() * (not events.journals):
        texts.append(f"{number(count, 'step')} still open when the capture ended")
    pids_without_meta = sorted(set(events.steps["pid"].to_list()) - set(events.metas))
    texts += [f"{process_name(pid, pids_without_meta)} has steps but no moe.meta" for pid in pids_without_meta]
    cells = counted_cells(events, events.steps)
    if missing_cells := len(cells.join(events.counts.cells, on=["pid", "step", "layer"], how="anti")):
        texts.append(f"{missing_cells:,} of {len(cells):,} (rank, step, layer) have no counts")
    return texts


def missing_ranks(metas: Sequence[Meta]) -> list[str]:
    """Return the ranks that the world size implies but no input has, per ``run_id``, one sentence each."""
    runs: dict[str, list[Meta]] = defaultdict(list)
    for meta in metas:
        runs[str(meta.raw.get("run_id", ""))].append(meta)
    return [
        f"run {run_id}: {text}" if len(runs) > 1 else text
        for run_id, members in sorted(runs.items())
        for text in _rank_losses(members)
    ]


def _rank_losses(members: Sequence[Meta]) -> list[str]:
    texts = []
    sizes = sorted({meta.world_size for meta in members})
    ranks = Counter(meta.rank for meta in members)
    if len(sizes) > 1:
        texts.append(_lower(sizes_differ(members)))
    missing = sorted(set(range(sizes[-1])) - set(ranks))
    if missing:
        listed = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        texts.append(f"world_size says {number(sizes[-1], 'rank')}, {len(ranks)} found (without {listed})")
    repeated = sorted(rank for rank, times in ranks.items() if times > 1)
    if repeated:
        texts.append(f"more than one process says to be rank {', '.join(map(str, repeated))}: these are several runs")
    return texts


def reservations(export: Export) -> list[str]:
    """Return diagnostics of nsys about lost events. They are no proof: complete captures have had them too."""
    texts = export.read(nsys_tables.DIAGNOSTICS)["text"].drop_nulls()
    return [f"nsys says: {text}" for text in sorted(set(texts.filter(texts.str.contains(_LOSS_PATTERN)).to_list()))]


def _lower(text: str) -> str:
    """Return a text with its first letter in lower case."""
    return text[:1].lower() + text[1:]
