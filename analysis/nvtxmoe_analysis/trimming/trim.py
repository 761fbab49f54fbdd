"""Reduce an export to what the analysis reads, fit for sharing: no environment, commands, users, hosts or paths.

The analysis computes the same numbers from the trimmed export: it keeps the rows that attribution, completeness of
launches, payloads and versions need, and nothing else. It may keep a range of steps only (``step_cut``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.attribution.ranges import Segments, classify, flatten
from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.events.decode import PAYLOAD_EVENTS
from nvtxmoe_analysis.events.nvtx import pid_of, push_pop, read_nvtx, read_payloads, step_ranges
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import OPERATIONS, Table
from nvtxmoe_analysis.readers.session import Session
from nvtxmoe_analysis.trimming.scrub_meta import scrub_blob, scrub_words
from nvtxmoe_analysis.trimming.step_cut import StepCut
from nvtxmoe_analysis.trimming.write_export import check_target, write_export

#: Events of the domain that are kept; ``moe.layer.7`` is of this form too.
EVENT_PATTERN = r"^moe\.[a-z0-9_.]+$"
EXPORT_NAMES = r"^EXPORT_(PRODUCT_(NAME|VERSION)|SCHEMA_VERSION(_MAJOR|_MINOR|_MICRO)?)$"
CAPTURE_NAMES = (
    r"^([A-Z0-9_]+:)*(CAPTURE_EVENT_TYPE|COLLECT_CUDA_TRACE|COLLECT_NVTX_TRACE|CUDA_GRAPH_TRACE_OPTIONS(:[A-Z_]+)?)$"
)
#: Diagnostics of nsys without names. Messages with free text (programs, paths) are left out.
DIAGNOSTIC_PATTERNS = (
    r"Profiling has (started|stopped)\.",
    r"(Common|NVTX|CUDA) injection( library)? initialized successfully\.",
    r"(NVTX|CUDA) profiling might have not been started correctly\.",
    r"No (NVTX|CUDA) events collected\. Does the process use (NVTX|CUDA)\?",
    r"Not all [A-Za-z]+( [a-z]+)? events might have been collected\.",
    r"Number of [A-Za-z]+ events (collected|produced):\s*\d+(, CUPTI buffers: \d+)?\.",
    r"Buffers holding CUDA trace data will be flushed on CudaProfilerStop\(\) call\. "
    r"See --flush-on-cudaprofilerstop to control this behavior\.",
    r"(Some )?(\d+ )?(NVTX |CUDA |CUPTI )?(trace )?(events|records|buffers) (were |have been )?(dropped|lost)\.?",
)


@dataclass(frozen=True)
class Trimmed:
    """Result of trimming. Sizes in bytes; rows as (before, after) per table that the analysis reads."""

    source: Path
    out: Path
    bytes_before: int
    bytes_after: int
    rows: dict[str, tuple[int, int]]

    @property
    def rows_before(self) -> int:
        """Rows of these tables in the source."""
        return sum(before for before, _ in self.rows.values())

    @property
    def rows_after(self) -> int:
        """Rows of these tables in the trimmed export."""
        return sum(after for _, after in self.rows.values())


def trim(export: Export, out: Path, *, first_step: int | None = None, last_step: int | None = None) -> Trimmed:
    """Write what the analysis needs of ``export`` to ``out``.

    Parameters:
        out: a SQLite file if its name ends in .sqlite or .db, otherwise a folder of Parquet files.
        first_step, last_step: keep these steps only, both inclusive; None for no limit.

    Raises:
        NvtxmoeError: the export has no nvtxmoe events or no such step, a moe.meta can't be read, or ``out`` can't be
            written.
    """
    if isinstance(export, Session):
        raise NvtxmoeError(
            "a session of direct mode, not an export: there is nothing of nsys to leave out",
            where=export.source,
            remedy="Share its results: nvtxmoe merge",
        )
    check_target(out, export.source, export.path)
    frames = select(export, first_step, last_step)
    export.require_unchanged()
    # nsys leaves out tables without rows; a file without these two would not be recognised as an export.
    written = {t: f for t, f in frames.items() if len(f) or (t in (nsys_tables.STRINGS, nsys_tables.EXPORT_META))}
    write_export(written, out)
    return Trimmed(
        source=export.source,
        out=out,
        bytes_before=size_bytes(export.path),
        bytes_after=size_bytes(out),
        rows={t.name: (_rows(export, t), len(f)) for t, f in frames.items()},
    )


def _rows(export: Export, table: Table) -> int:
    # Ids are row numbers of StringIds in SQLite, and a trimmed export has gaps in them.
    return len(export.read(table, ("id",))) if table == nsys_tables.STRINGS else export.rows(table)


def select(export: Export, first_step: int | None = None, last_step: int | None = None) -> dict[Table, pl.DataFrame]:
    """Return the rows and columns to keep of each table in the export, in file order.

    Columns are those of ``readers.nsys_tables`` that the file has, and ``binaryData`` (Binary).

    Parameters:
        first_step, last_step: see :func:`trim`.
    """
    all_events = read_nvtx(export)
    events = all_events.filter(pl.col("name").str.contains(EVENT_PATTERN))
    segments = flatten(classify(push_pop(events), step_ranges(events)))
    operations = {table: _read(export, table) for table in OPERATIONS if export.has(table)}
    cut = None
    if first_step is not None or last_step is not None:
        cut = StepCut(export, all_events, segments, first_step, last_step)
        operations = cut.operations(operations)
    frames = dict(operations)
    worked = [f.select(_key("globalPid", -1)) for f in operations.values()]
    runtime = _runtime(export, segments, cut, worked)
    frames[nsys_tables.RUNTIME] = runtime
    nodes = _graph_nodes(export, list(operations.values()), runtime)
    frames[nsys_tables.GRAPH_NODES] = nodes
    nvtx = _nvtx(export, all_events, events if cut is None else cut.events(events, nodes))
    frames[nsys_tables.NVTX] = nvtx
    domains = nvtx["domainId"].unique()
    for table in (nsys_tables.PAYLOAD_SCHEMAS, nsys_tables.PAYLOAD_ENTRIES):
        frames[table] = _read(export, table).filter(pl.col("domainId").is_in(domains.implode()))
    frames[nsys_tables.STRINGS] = _strings(export, frames)
    frames[nsys_tables.PROCESSES] = _read(export, nsys_tables.PROCESSES).drop("name", strict=False)
    for table in (nsys_tables.SESSION_START, nsys_tables.GPU_INFO, nsys_tables.COPY_KINDS):
        frames[table] = _read(export, table)
    frames[nsys_tables.EXPORT_META] = _read(export, nsys_tables.EXPORT_META).filter(
        pl.col("name").str.contains(EXPORT_NAMES)
    )
    frames[nsys_tables.CAPTURE_META] = _read(export, nsys_tables.CAPTURE_META).filter(
        pl.col("name").str.contains(CAPTURE_NAMES)
    )
    harmless = rf"^({'|'.join(DIAGNOSTIC_PATTERNS)})$"
    frames[nsys_tables.DIAGNOSTICS] = _read(export, nsys_tables.DIAGNOSTICS).filter(
        pl.col("text").str.contains(harmless)
    )
    return {table: frames[table] for table in nsys_tables.ALL if table in frames and export.has(table)}


def _read(export: Export, table: Table) -> pl.DataFrame:
    """Read the declared columns that the file has, in file order."""
    return _in_order(_read_with_rows(export, table))


def _read_with_rows(export: Export, table: Table) -> pl.DataFrame:
    """Read the declared columns that the file has, in any order, with ``row``, the row's number in the file.

    Raises:
        NvtxmoeError: a required column is missing.
    """
    present = export.columns(table)
    optional = [column for column in table.optional if column in present or not present]
    return export.read(table, [*table.columns, *optional], row=True)


def _in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("row").drop("row")


def _nvtx(export: Export, nvtx: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Return rows of the domain ``nvtxmoe``, payloads scrubbed.

    Parameters:
        nvtx: see ``read_nvtx``.
        events: those of them that are kept.
    """
    kept_rows = pl.concat([events["row"], _domain_rows(export)]).unique().alias("row")
    frame = _read_with_rows(export, nsys_tables.NVTX).join(kept_rows.to_frame(), on="row", how="semi")
    where = f"{export.source}, table {nsys_tables.NVTX.name}"
    frame = _with_words(frame, events, where)
    if export.has_blob_column():
        frame = _with_blobs(frame, read_payloads(export, nvtx), where)
    return _in_order(frame)


def _with_words(frame: pl.DataFrame, events: pl.DataFrame, where: str) -> pl.DataFrame:
    """Replace the words that spell moe.meta by scrubbed ones."""
    is_word = (pl.col("eventType") == nsys_tables.NVTX_MARK) & pl.col("name").str.starts_with(schema.WORD_PREFIX)
    words = scrub_words(events.filter(is_word), where)
    if not words:
        return frame
    new = pl.DataFrame({"row": list(words), "word": list(words.values())}, schema={"row": pl.Int64, "word": pl.Int64})
    respelled = frame.join(new, on="row", how="left")
    return respelled.with_columns(int64Value=pl.coalesce("word", "int64Value")).drop("word")


def _with_blobs(frame: pl.DataFrame, blobs: pl.DataFrame, where: str) -> pl.DataFrame:
    """Add ``binaryData`` of the events that the analysis decodes, moe.meta scrubbed."""
    decoded = blobs.filter(pl.col("name").is_in(PAYLOAD_EVENTS)).select("row", "name", "blob")
    clean = [
        scrub_blob(blob, where) if name == schema.META else blob
        for name, blob in decoded.select("name", "blob").iter_rows()
    ]
    payloads = pl.DataFrame({"row": decoded["row"], nsys_tables.NVTX_BLOB: pl.Series(clean, dtype=pl.Binary)})
    return frame.join(payloads, on="row", how="left")


def _domain_rows(export: Export) -> pl.Series:
    """Return the rows that register the domain ``nvtxmoe``, one per process."""
    columns = ("text", "textId")
    rows = export.read(nsys_tables.NVTX, columns, only=("eventType", [nsys_tables.NVTX_DOMAIN]), row=True)
    names = export.strings(rows["textId"].drop_nulls().unique().to_list())
    registered = pl.col("textId").replace_strict(names, default=None, return_dtype=pl.String)
    return rows.filter(pl.coalesce("text", registered) == schema.DOMAIN)["row"]


def _runtime(export: Export, segments: Segments, cut: StepCut | None, worked: list[pl.DataFrame]) -> pl.DataFrame:
    """Return calls that gave GPU work, and all launch calls inside the steps that are kept."""
    frame = _read_with_rows(export, nsys_tables.RUNTIME)
    tid, start = frame["globalTid"].fill_null(0).to_numpy(), frame["start"].to_numpy()
    inside = segments.step[segments.find(tid, start)] >= 0 if cut is None else cut.in_kept_step(tid, start)
    in_step = pl.Series(inside)
    names = export.strings(frame["nameId"].drop_nulls().unique().to_list())
    name = pl.col("nameId").replace_strict(names, default="", return_dtype=pl.String)
    launches = frame.filter(in_step).filter(name.str.contains(nsys_tables.LAUNCH_PATTERN)).select("row")
    calls = frame.select("row", *_key("globalTid", 0))
    used = [calls.join(w, on=["pid", "correlationId"], how="semi").select("row") for w in worked]
    kept_rows = pl.concat([launches, *used]).unique()
    return _in_order(frame.join(kept_rows, on="row", how="semi"))


def _key(process: str, nameless: int) -> tuple[pl.Expr, pl.Expr]:
    """Return (pid, correlationId) as ``Launches`` looks them up: a null is 0 for calls, and no call for operations."""
    return pid_of(process).fill_null(0).alias("pid"), pl.col("correlationId").fill_null(nameless)


def _graph_nodes(export: Export, operations: list[pl.DataFrame], runtime: pl.DataFrame) -> pl.DataFrame:
    """Return nodes that were replayed, their original nodes, and nodes made by the launch calls that are kept."""
    frame = _read_with_rows(export, nsys_tables.GRAPH_NODES).with_columns(pid=pid_of("globalTid"))
    replayed = [
        f.select(pid_of("globalPid").alias("pid"), "graphNodeId").drop_nulls().unique()
        for f in operations
        if "graphNodeId" in f.columns
    ]
    key = ["pid", "graphNodeId"]
    used = frame.join(pl.concat([frame.clear().select(key), *replayed]), on=key, how="semi")
    number = -1
    while len(used) > number:  # a clone's original may be a clone too
        number = len(used)
        originals = used.select("pid", pl.col("originalGraphNodeId").alias("graphNodeId")).drop_nulls()
        used = frame.join(pl.concat([used.select(key), originals]), on=key, how="semi")
    kept_rows = pl.concat([used["row"], _made_during(frame, runtime)]).unique().alias("row")
    return _in_order(frame.join(kept_rows.to_frame(), on="row", how="semi")).drop("pid")


def _made_during(nodes: pl.DataFrame, calls: pl.DataFrame) -> pl.Series:
    """Return the rows of the first node created during each call: a stream capture recorded that call."""
    created_nodes = nodes.select("row", "globalTid", "start", pl.col("start").alias("created")).sort("start")
    call_spans = calls.select("globalTid", "start", "end").sort("start")
    first_nodes = call_spans.join_asof(
        created_nodes, on="start", by="globalTid", strategy="forward", check_sortedness=False
    )
    return first_nodes.filter(pl.col("created") <= pl.col("end"))["row"]


def _strings(export: Export, frames: dict[Table, pl.DataFrame]) -> pl.DataFrame:
    """Return the texts that the kept rows refer to."""
    named = ((nsys_tables.KERNEL, "demangledName"), (nsys_tables.RUNTIME, "nameId"), (nsys_tables.NVTX, "textId"))
    ids = pl.concat([frames[t][c] for t, c in named if t in frames]).drop_nulls().unique().to_list()
    return export.read(nsys_tables.STRINGS, only=("id", ids)).sort("id")
