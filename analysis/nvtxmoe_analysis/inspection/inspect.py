"""What is in an export, in a second: the NVTX rows are read, of the CUDA tables only their sizes. Or in a session."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.attribution.launches import GRAPH_LAUNCH_PATTERN
from nvtxmoe_analysis.checks.journals_whole import unfinished
from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.events.decode import Events, read_events
from nvtxmoe_analysis.events.journals import read_session
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.inspection.losses import event_losses, losses, missing_ranks, reservations
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import OPERATIONS
from nvtxmoe_analysis.readers.session import Session

VERSIONS = ("vllm", "torch", "nvtxmoe", "device")
UNRECORDED = "launched, but no node recorded"
_MODE_NAME = "CUDA_GRAPH_TRACE_OPTIONS:MODE"

NOTHING_MISSING, INCOMPLETE, NO_EVENTS = "nothing missing so far", "incomplete", "no readable nvtxmoe events"


@dataclass(frozen=True)
class Process:
    """One process that captured routing; null where neither moe.meta nor moe.step tells."""

    pid: int
    rank: int | None
    world_size: int | None
    tp_rank: int | None
    tp_size: int | None
    ep_rank: int | None
    ep_size: int | None
    dp_rank: int | None
    dp_size: int | None
    steps: int
    first_step: int | None
    last_step: int | None
    prefill_tokens: int
    decode_tokens: int


@dataclass(frozen=True)
class LayerInfo:
    """One MoE layer, as moe.meta describes it."""

    layer: int
    name: str | None
    num_experts: int
    top_k: int


@dataclass(frozen=True)
class Contents:
    """What nvtxmoe wrote into one export.

    Attributes:
        versions: of vllm, torch, nvtxmoe, and the device's name; several values where processes differ.
        counts: number of ``moe.counts`` payloads.
        samples: number of ``moe.topk`` payloads, of ``sampled_tokens`` tokens in all.
        encoding: ``binary``, ``words``, ``journal`` or ``none``.
        blobs: whether binary payloads are there: ``present``, ``missing`` (exported without), ``unsupported``
            (this nsys has no column for them).
        span_ns: first event to last, nanoseconds.
    """

    versions: dict[str, list[str]]
    processes: list[Process]
    layers: list[LayerInfo]
    steps: int
    counts: int
    samples: int
    sampled_tokens: int
    encoding: str
    blobs: str
    span_ns: int


@dataclass(frozen=True)
class Inspected:
    """One input.

    Attributes:
        gpu_operations: rows by kind of operation.
        runtime_calls: rows of CUDA API calls.
        graph_tracing: ``node``, ``graph`` (no kernels inside graphs), ``launched, but no node recorded``, ``none
            used``, or ``unknown``.
        journals: of a session of direct mode, the number of its files; else null. Nothing of nsys and the GPU is in
            one.
        contents: null when there are no nvtxmoe events that can be read.
        missing: why the capture can't be whole.
        warnings: what is worth knowing but need not be a loss.
    """

    path: str
    kind: str
    size_bytes: int
    nsys_product: str | None
    nsys_version: str | None
    export_schema: str | None
    gpus: list[str]
    gpu_operations: dict[str, int]
    runtime_calls: int
    graph_tracing: str
    contents: Contents | None
    missing: list[str]
    warnings: list[str]
    journals: int | None = None


@dataclass(frozen=True)
class Inspection:
    """All inputs of one run. ``missing`` and ``warnings`` are those of the inputs, and of the run as a whole."""

    inputs: list[Inspected]
    missing: list[str]
    warnings: list[str]

    @property
    def verdict(self) -> str:
        """What can be said so far."""
        if any(one.contents is None for one in self.inputs):
            return NO_EVENTS
        return INCOMPLETE if self.missing else NOTHING_MISSING

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"verdict": self.verdict, **asdict(self)}


def inspect(exports: Sequence[Export]) -> Inspection:
    """Look into the exports of one run.

    Raises:
        NvtxmoeError: an export is damaged. One without nvtxmoe events is not an error here: the verdict says so.
    """
    inputs: list[Inspected] = []
    metas: list[Meta] = []
    for export in exports:
        one, found = _inspect_session(export) if isinstance(export, Session) else _inspect_one(export)
        inputs.append(one)
        metas.extend(found)
    several = len(inputs) > 1

    def told(one: Inspected, text: str) -> str:
        return f"{Path(one.path).name}: {text}" if several else text

    return Inspection(
        inputs=inputs,
        missing=[told(one, text) for one in inputs for text in one.missing] + missing_ranks(metas),
        warnings=[told(one, text) for one in inputs for text in one.warnings],
    )


def _inspect_one(export: Export) -> tuple[Inspected, list[Meta]]:
    operations = {table.name.removeprefix("CUPTI_ACTIVITY_KIND_").lower(): export.rows(table) for table in OPERATIONS}
    calls = export.rows(nsys_tables.RUNTIME)
    tracing = _graph_tracing(export)
    info = export.metadata(nsys_tables.EXPORT_META)
    events: Events | None = None
    unreadable: list[str] = []
    try:
        events = read_events(export)
    except NvtxmoeError as error:
        unreadable = [". ".join(filter(None, (error.what, error.remedy)))]
    found = Inspected(
        path=str(export.source),
        kind=export.kind,
        size_bytes=size_bytes(export.path),
        nsys_product=info.get("EXPORT_PRODUCT_NAME"),
        nsys_version=info.get("EXPORT_PRODUCT_VERSION"),
        export_schema=info.get("EXPORT_SCHEMA_VERSION"),
        gpus=export.read(nsys_tables.GPU_INFO)["name"].drop_nulls().to_list(),
        gpu_operations=operations,
        runtime_calls=calls,
        graph_tracing=tracing,
        contents=_contents(events, _blobs(export, events)) if events else None,
        missing=unreadable + losses(export, events, sum(operations.values()), calls, tracing),
        warnings=reservations(export),
    )
    return found, list(events.metas.values()) if events else []


def _inspect_session(session: Session) -> tuple[Inspected, list[Meta]]:
    events = read_session(session)
    files = list(events.journals.values())
    warning = unfinished(files)
    found = Inspected(
        path=str(session.source),
        kind=session.kind,
        size_bytes=sum(file.size_bytes for file in files),
        nsys_product=None,
        nsys_version=None,
        export_schema=None,
        gpus=[],
        gpu_operations={},
        runtime_calls=0,
        graph_tracing="unknown",
        contents=_contents(events, "present"),
        missing=event_losses(events),
        warnings=[warning] if warning else [],
        journals=len(files),
    )
    return found, list(events.metas.values())


def _graph_tracing(export: Export) -> str:
    """How CUDA graphs were traced: by what is there, else by what was asked for."""
    if export.rows(nsys_tables.GRAPH_TRACE):
        return "graph"
    if export.rows(nsys_tables.GRAPH_NODES):
        return "node"
    if any(re.match(GRAPH_LAUNCH_PATTERN, text) for text in export.read(nsys_tables.STRINGS)["value"].to_list()):
        return UNRECORDED
    asked = [v for k, v in export.metadata(nsys_tables.CAPTURE_META).items() if k.endswith(_MODE_NAME)]
    return "none used" if asked and export.rows(nsys_tables.RUNTIME) else "unknown"


def _contents(events: Events, blobs: str) -> Contents:
    versions: dict[str, set[str]] = defaultdict(set)
    layers: dict[int, LayerInfo] = {}
    for meta in events.metas.values():
        for key in VERSIONS:
            if meta.raw.get(key) is not None:
                versions[key].add(str(meta.raw[key]))
        layers |= {n: LayerInfo(n, one.name, one.num_experts, one.top_k) for n, one in meta.layers.items()}
    samples = events.topk.runs.select("pid", "step", "layer")
    return Contents(
        versions={key: sorted(versions[key]) for key in VERSIONS if key in versions},
        processes=_processes(events),
        layers=[layers[n] for n in sorted(layers)],
        steps=len(events.steps),
        counts=len(events.counts),
        samples=samples.n_unique() if len(samples) else 0,
        sampled_tokens=len(events.topk),
        encoding=events.encoding,
        blobs=blobs,
        span_ns=_span_ns(events),
    )


def _blobs(export: Export, events: Events) -> str:
    if events.encoding == "binary":
        return "present"
    return "missing" if export.has_blob_column() else "unsupported"


def _span_ns(events: Events) -> int:
    starts = pl.concat([events.ranges["start"], events.steps["start"], events.counts.cells["start"]])
    ends = pl.concat([starts, events.ranges["end"].drop_nulls()])
    return int(ends.max() or 0) - int(starts.min() or 0)  # type: ignore[arg-type]


def _processes(events: Events) -> list[Process]:
    pids = set(events.metas) | set(events.steps["pid"].to_list()) | set(events.counts.cells["pid"].to_list())
    processes = [_process(pid, events.metas.get(pid), events.steps.filter(pid=pid)) for pid in sorted(pids)]
    return sorted(processes, key=lambda one: (one.rank is None, one.rank, one.pid))


def _process(pid: int, meta: Meta | None, steps: pl.DataFrame) -> Process:
    said = meta.raw if meta else {}
    known = steps["rank"].drop_nulls()
    numbers = steps["step"].drop_nulls()

    def size(key: str) -> int | None:
        value = said.get(key)
        return value if isinstance(value, int) else None

    return Process(
        pid=pid & nsys_tables.PID_MASK,
        rank=meta.rank if meta else (int(known[0]) if len(known) else None),
        world_size=meta.world_size if meta else None,
        tp_rank=size("tp_rank"),
        tp_size=size("tp_size"),
        ep_rank=size("ep_rank"),
        ep_size=size("ep_size"),
        dp_rank=size("dp_rank"),
        dp_size=size("dp_size"),
        steps=len(steps),
        first_step=int(numbers.min()) if len(numbers) else None,  # type: ignore[arg-type]
        last_step=int(numbers.max()) if len(numbers) else None,  # type: ignore[arg-type]
        prefill_tokens=int(steps["prefill_tokens"].sum()),
        decode_tokens=int(steps["decode_tokens"].sum()),
    )
