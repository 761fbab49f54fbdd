"""Runtime and driver calls: what was open where they began, and which of them gave no GPU work."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution.id_index import ID_BITS, Index
from nvtxmoe_analysis.attribution.order import calls_disordered
from nvtxmoe_analysis.attribution.ranges import Segments
from nvtxmoe_analysis.attribution.repeated_ids import RepeatedIds
from nvtxmoe_analysis.attribution.step_starts import StepStarts
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import GRAPH_LAUNCH_PATTERN, LAUNCH_PATTERN

Calls = npt.NDArray[np.int32]

_COLUMNS = ("start", "globalTid", "correlationId", "nameId", "returnValue")
#: Correlation ids asked for by name at most; more are found by reading the whole table.
MOST_IDS = 5000


class Launches:
    """The RUNTIME rows of an export that put work on the GPU.

    Calls are numbered in the order in which they are read: first those whose name says that they launch, later
    (:meth:`add`) others that operations turned out to come from.

    Attributes:
        segment: int32 [calls + 1], the segment (of ``Segments``) in which each call began. The last entry is the
            empty segment, so that a missing call (-1) lands there.
        after_step: int32 [calls + 1], of calls outside steps the row of the last step that had begun in their process;
            -1 where none had, of calls in steps, and in the last entry.
        start_ns: int64 [calls + 1], when each call began; the last entry, for a missing call, is the latest time.
        thread: int32 [calls + 1], the lower bits of each call's globalTid; the last entry is -1.
        disordered, restarts: see ``order.calls_disordered``.
        repeated: calls whose (process, correlation id) an earlier one has; see :meth:`of`.
    """

    def __init__(self, export: Export, segments: Segments, progress: Progress | None = None) -> None:
        self._export, self._segments = export, segments
        self._progress = progress or Progress()
        strings = export.read(nsys_tables.STRINGS) if export.has(nsys_tables.RUNTIME) else pl.DataFrame()
        self._names = {ident: text for ident, text in strings.rows() if re.match(LAUNCH_PATTERN, text) is not None}
        self._starts = StepStarts(segments)
        self.segment: Calls = np.zeros(1, dtype=np.int32)
        self.after_step: Calls = np.full(1, -1, dtype=np.int32)
        self.start_ns: Ints = np.full(1, np.iinfo(np.int64).max)
        self.thread: Calls = np.full(1, -1, dtype=np.int32)
        self.repeated = self.disordered = self.restarts = 0
        self._indexes: list[tuple[int, Index, RepeatedIds]] = []
        self._in_step: list[pl.DataFrame] = []
        if self._names:
            self._progress.begin(
                f"{export.source.name}: launches among {export.rows(nsys_tables.RUNTIME):,} CUDA calls"
            )
            self._read(("nameId", list(self._names)))
        self._used: npt.NDArray[np.bool_] = np.zeros(len(self), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.segment) - 1

    def add(self, correlations: Collection[int]) -> None:
        """Read the calls with these correlation ids too, whatever their names."""
        before = len(self)
        self._read(("correlationId", correlations) if len(correlations) <= MOST_IDS else None)
        self._used = np.append(self._used, np.zeros(len(self) - before, dtype=np.bool_))

    def of(self, pid: Ints, correlation: Ints, start_ns: Ints) -> Calls:
        """Call of each operation, -1 where its row is missing.

        Where calls of one process share a correlation id, the last one that began before the operation counts.

        Parameters:
            start_ns: when each operation began.
        """
        call = np.full(len(pid), -1, dtype=np.int32)
        for first, index, repeats in self._indexes:
            lost = np.flatnonzero(call < 0)
            all_lost = len(lost) == len(call)
            index_rows = index.find(pid, correlation) if all_lost else index.find(pid[lost], correlation[lost])
            index_rows = repeats.choose(index_rows, start_ns if all_lost else start_ns[lost])
            call[lost] = np.where(index_rows >= 0, index_rows + first, -1)
        return call

    def use(self, calls: Calls) -> None:
        """Note that these calls gave GPU work."""
        self._used[calls[calls >= 0]] = True

    def in_steps(self) -> pl.DataFrame:
        """Launch calls inside steps.

        Columns: ``call``, ``start``, ``globalTid``, ``name``, ``step_row``, ``is_graph``, ``has_work``. Calls whose
        name does not say that they launch are among them when they did (their ``name`` is empty). Left out are
        calls that failed and those that a stream capture recorded into a graph (a graph node was created while they
        ran): neither puts work on the GPU.
        """
        calls = pl.concat([_EMPTY, *self._in_step])
        if not calls["named"].all():  # a copy of so many rows costs memory
            calls = calls.filter(pl.col("named") | pl.Series(self._used[calls["call"].to_numpy()]))
        at = calls["call"].to_numpy()
        graphs = [ident for ident, text in self._names.items() if re.match(GRAPH_LAUNCH_PATTERN, text)]
        launching = calls.select(
            "call",
            pl.Series("start", self.start_ns[at]),
            "globalTid",
            "correlationId",
            pl.col("nameId").replace_strict(self._names, default="", return_dtype=pl.String).alias("name"),
            pl.Series("step_row", self._segments.step[self.segment[at]]),
            pl.col("nameId").is_in(graphs).alias("is_graph"),
            pl.Series("has_work", self._used[at]),
        )
        suspects = launching.filter(~pl.col("has_work"))
        if len(suspects) and self._export.has(nsys_tables.GRAPH_NODES):
            launching = launching.join(self._captured(suspects), on="call", how="anti", maintain_order="left")
        return launching.drop("correlationId")

    def _read(self, only: tuple[str, Collection[int]] | None) -> None:
        pids: list[Ints] = []
        starts: list[Ints] = []
        idents: list[npt.NDArray[np.int64]] = []
        segments: list[Calls] = []
        after: list[Calls] = []
        threads: list[Calls] = []
        first = at = len(self)
        named = only is not None and only[0] == "nameId"
        for tid, correlation, start_ns, segment, after_step, in_step in ordered_map(
            self._located, self._progress.over(self._export.batches(nsys_tables.RUNTIME, _COLUMNS, only=only))
        ):
            self._in_step.append(in_step.with_columns(pl.col("call") + pl.lit(at, pl.Int32), named=pl.lit(named)))
            pids.append(tid >> nsys_tables.TID_BITS)
            threads.append((tid & ((1 << nsys_tables.TID_BITS) - 1)).astype(np.int32))
            if first == 0:
                disordered, restarts = calls_disordered(tid, start_ns, correlation)
                self.disordered += disordered
                self.restarts += restarts
            starts.append(start_ns)
            idents.append(correlation)
            segments.append(segment)
            after.append(after_step)
            at += len(segment)
        if segments:
            pid, ident, start_ns = (_joined(parts) for parts in (pids, idents, starts))
            index = Index(pid, ident)
            self.repeated += index.repeated if first == 0 else 0
            self._indexes.append((first, index, RepeatedIds(index, pid, ident, start_ns)))
            self.start_ns = np.concatenate([self.start_ns[:-1], start_ns, self.start_ns[-1:]])
            self.segment = np.concatenate([self.segment[:-1], *segments, self.segment[-1:]])
            self.thread = np.concatenate([self.thread[:-1], *threads, self.thread[-1:]])
            self.after_step = np.concatenate([self.after_step[:-1], *after, self.after_step[-1:]])

    def _located(self, batch: pl.DataFrame) -> tuple[Ints, Ints, Ints, Calls, Calls, pl.DataFrame]:
        """globalTid, correlation id, start, segment and step before of each call, and what :meth:`in_steps` needs."""
        tid, start = batch["globalTid"].fill_null(0).to_numpy(), batch["start"].to_numpy()
        pid = tid >> nsys_tables.TID_BITS
        segment = self._segments.find(tid, start)
        inside = self._segments.step[segment] >= 0
        outside = np.flatnonzero(~inside)
        after_step = np.full(len(batch), -1, dtype=np.int32)
        after_step[outside] = self._starts.before(pid[outside], start[outside])
        return (
            tid,
            _known_ids(batch["correlationId"]),
            start,
            segment,
            after_step,
            batch.select(*_KEPT, call=pl.int_range(pl.len(), dtype=pl.Int32)).filter(
                pl.Series(inside) & (batch["returnValue"].fill_null(0) == 0)
            ),
        )

    def _captured(self, suspects: pl.DataFrame) -> pl.DataFrame:
        """``call`` of those during which a graph node was created on their thread."""
        idents = suspects["correlationId"].drop_nulls().unique().to_list()
        few = ("correlationId", idents) if len(idents) <= MOST_IDS else None
        ends = self._export.read(nsys_tables.RUNTIME, ("start", "end", "globalTid", "correlationId"), only=few)
        nodes = self._export.read(nsys_tables.GRAPH_NODES, ("start", "globalTid")).sort("start")
        spans = suspects.join(ends, on=["start", "globalTid", "correlationId"], how="inner").sort("start")
        hits = spans.join_asof(
            nodes.rename({"start": "created"}).with_columns(pl.col("created").alias("start")),
            on="start",
            by="globalTid",
            strategy="forward",
            check_sortedness=False,
        )
        return hits.filter(pl.col("created") <= pl.col("end")).select("call")


def _joined(parts: list[Ints]) -> Ints:
    """The parts as one array. The list is emptied: the largest exports leave no room for both."""
    whole = np.concatenate(parts)
    parts.clear()
    return whole


def _known_ids(correlation: pl.Series) -> Ints:
    """Correlation ids, 0 (which stands for none) in the place of what can't be one."""
    ids = correlation.fill_null(0).to_numpy()
    return np.where((ids >= 0) & (ids < 1 << ID_BITS), ids, 0)


#: Columns kept of calls in steps: a large export has millions of them.
_KEPT = ("globalTid", "correlationId", "nameId")
_EMPTY = pl.DataFrame(schema={**dict.fromkeys(_KEPT, pl.Int64), "call": pl.Int32, "named": pl.Boolean})
