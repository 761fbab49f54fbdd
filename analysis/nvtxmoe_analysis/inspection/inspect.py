"""Look into an export or a session: read its NVTX rows or journals, and count the rows of the CUDA tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.checks.journals_whole import unfinished
from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.events.decode import Events, read_events
from nvtxmoe_analysis.events.journals import read_session
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.recording import recording_of
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
    """One process that captured routing. A value is null if neither moe.meta nor moe.step contains it."""

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
    """The nvtxmoe events of one export or session.

    Attributes:
        versions: of vllm, torch, nvtxmoe, and the device's name; several values if processes differ.
        recording: layers by how their expert ids were taken (``references``, ``sink``, ``recomputed``).
        counts: number of (step, layer) in ``moe.counts``.
        samples: number of ``moe.topk`` payloads; they hold ``sampled_tokens`` tokens in total.
        encoding: ``binary``, ``words``, ``journal`` or ``none``.
        blobs: ``present``, ``missing`` (the report was exported without binary payloads), or ``unsupported`` (this nsys
            has no column for them).
        span_ns: time from the first event to the last, nanoseconds.
    """

    versions: dict[str, list[str]]
    processes: list[Process]
    layers: list[LayerInfo]
    recording: dict[str, str]
    steps: int
    counts: int
    samples: int
    sampled_tokens: int
    encoding: str
    blobs: str
    span_ns: int


@dataclass(frozen=True)
class Inspected:
    """One inspected input.

    Attributes:
        gpu_operations: number of rows per kind of operation.
        runtime_calls: number of CUDA API calls.
        graph_tracing: ``node``, ``graph`` (no kernels inside graphs), ``launched, but no node recorded``, ``none
            used``, or ``unknown``.
        contents: null if the input has no readable nvtxmoe events.
        missing: reasons why the capture is incomplete.
        warnings: notes that need not mean a loss.
        journals: number of files of a session of direct mode, which holds no data of nsys or the GPU; null for an
            export.
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
    """All inputs of one run. ``missing`` and ``warnings`` are those of the inputs and of the run as a whole."""

    inputs: list[Inspected]
    missing: list[str]
    warnings: list[str]

    @property
    def verdict(self) -> str:
        """``no readable nvtxmoe events``, ``incomplete`` or ``nothing missing so far``."""
        if any(inspected.contents is None for inspected in self.inputs):
            return NO_EVENTS
        return INCOMPLETE if self.missing else NOTHING_MISSING

    def as_dict(self) -> dict[str, Any]:
        """Return the inspection and its verdict, JSON-ready."""
        return {"verdict": self.verdict, **asdict(self)}


def inspect(exports: Sequence[Export]) -> Inspection:
    """Look into the exports or sessions of one run.

    Raises:
        NvtxmoeError: an export is damaged. An export without nvtxmoe events is no error: the verdict shows it.
    """
    inputs: list[Inspected] = []
    metas: list[Meta] = []
    for export in exports:
        inspected, export_metas = _inspect_session(export) if isinstance(export, Session) else _inspect_export(export)
        inputs.append(inspected)
        metas.extend(export_metas)
    several = len(inputs) > 1

    def with_name(inspected: Inspected, text: str) -> str:
        return f"{Path(inspected.path).name}: {text}" if several else text

    return Inspection(
        inputs=inputs,
        missing=[with_name(inspected, text) for inspected in inputs for text in inspected.missing]
        + missing_ranks(metas),
        warnings=[with_name(inspected, text) for inspected in inputs for text in inspected.warnings],
    )


def _inspect_export(export: Export) -> tuple[Inspected, list[Meta]]:
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
    inspected = Inspected(
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
    return inspected, list(events.metas.values()) if events else []


def _inspect_session(session: Session) -> tuple[Inspected, list[Meta]]:
    events = read_session(session)
    files = list(events.journals.values())
    warning = unfinished(files)
    inspected = Inspected(
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
    return inspected, list(events.metas.values())


def _graph_tracing(export: Export) -> str:
    """Return how CUDA graphs were traced: from the tables that exist, otherwise from the options of the capture."""
    if export.rows(nsys_tables.GRAPH_TRACE):
        return "graph"
    if export.rows(nsys_tables.GRAPH_NODES):
        return "node"
    if export.read(nsys_tables.STRINGS)["value"].str.contains(nsys_tables.GRAPH_LAUNCH_PATTERN).any():
        return UNRECORDED
    requested_modes = [
        value for name, value in export.metadata(nsys_tables.CAPTURE_META).items() if name.endswith(_MODE_NAME)
    ]
    return "none used" if requested_modes and export.rows(nsys_tables.RUNTIME) else "unknown"


def _contents(events: Events, blobs: str) -> Contents:
    versions: dict[str, set[str]] = defaultdict(set)
    layers: dict[int, LayerInfo] = {}
    for meta in events.metas.values():
        for key in VERSIONS:
            if meta.raw.get(key) is not None:
                versions[key].add(str(meta.raw[key]))
        layers |= {n: LayerInfo(n, layer.name, layer.num_experts, layer.top_k) for n, layer in meta.layers.items()}
    samples = events.topk.runs.select("pid", "step", "layer")
    return Contents(
        versions={key: sorted(versions[key]) for key in VERSIONS if key in versions},
        processes=_processes(events),
        layers=[layers[n] for n in sorted(layers)],
        recording=recording_of(events.metas.values()),
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
    return sorted(processes, key=lambda process: (process.rank is None, process.rank, process.pid))


def _process(pid: int, meta: Meta | None, steps: pl.DataFrame) -> Process:
    raw_meta = meta.raw if meta else {}
    known = steps["rank"].drop_nulls()
    numbers = steps["step"].drop_nulls()

    def meta_number(key: str) -> int | None:
        value = raw_meta.get(key)
        return value if isinstance(value, int) else None

    return Process(
        pid=pid & nsys_tables.PID_MASK,
        rank=meta.rank if meta else (int(known[0]) if len(known) else None),
        world_size=meta.world_size if meta else None,
        tp_rank=meta_number("tp_rank"),
        tp_size=meta_number("tp_size"),
        ep_rank=meta_number("ep_rank"),
        ep_size=meta_number("ep_size"),
        dp_rank=meta_number("dp_rank"),
        dp_size=meta_number("dp_size"),
        steps=len(steps),
        first_step=int(numbers.min()) if len(numbers) else None,  # type: ignore[arg-type]
        last_step=int(numbers.max()) if len(numbers) else None,  # type: ignore[arg-type]
        prefill_tokens=int(steps["prefill_tokens"].sum()),
        decode_tokens=int(steps["decode_tokens"].sum()),
    )
