"""Runtime and driver calls: what was open where they began, and which of them gave no GPU work."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.exports import tables
from nvtxmoe_analysis.exports.base import Export
from nvtxmoe_analysis.lookup import Index
from nvtxmoe_analysis.ranges import Segments

Ints = npt.NDArray[np.int64]

#: Calls that put work on the GPU; version suffixes (_v7000, _ptsz) follow the name.
LAUNCH_PATTERN = r"^(cuda|cu)(LaunchKernel|LaunchCooperativeKernel|GraphLaunch|Memcpy|Memset)"
GRAPH_LAUNCH_PATTERN = r"^(cuda|cu)GraphLaunch"


class Launches:
    """The RUNTIME rows of an export.

    Attributes:
        segment: int32 [calls], the segment (of ``Segments``) in which each call began.
        repeated: calls whose (process, correlation id) an earlier one has; the earlier one counts.
    """

    def __init__(self, export: Export, segments: Segments) -> None:
        frame = export.read(tables.RUNTIME, ("start", "globalTid", "correlationId", "nameId", "returnValue"))
        tid, self._start = frame["globalTid"].fill_null(0).to_numpy(), frame["start"].to_numpy()
        pid = (tid >> tables.PID_SHIFT) & tables.PID_MASK
        self.segment = segments.find(tid, self._start)
        self._index = Index(pid, frame["correlationId"].fill_null(0).to_numpy())
        self.repeated = self._index.repeated
        self._used = np.zeros(len(frame), dtype=np.bool_)
        in_step = np.flatnonzero(segments.step[self.segment] >= 0)
        self._in_step = frame[in_step].with_columns(call=pl.Series(in_step, dtype=pl.Int64))
        self._segments = segments
        self._export = export

    def __len__(self) -> int:
        return len(self._used)

    def of(self, pid: Ints, correlation: pl.Series) -> npt.NDArray[np.int32]:
        """Call of each operation, -1 where its row is missing."""
        return self._index.find(pid, correlation.fill_null(-1).to_numpy())

    def use(self, calls: npt.NDArray[np.int32]) -> None:
        """Note that these calls gave GPU work."""
        self._used[calls[calls >= 0]] = True

    def in_steps(self) -> pl.DataFrame:
        """Launch calls inside steps.

        Columns: ``call``, ``start``, ``globalTid``, ``name``, ``step_row``, ``is_graph``, ``has_work``. Left out are calls that failed and those that a stream capture recorded into a graph (a graph node was
        created while they ran): neither puts work on the GPU.
        """
        names = self._export.strings(self._in_step["nameId"].unique().to_list())
        named = self._in_step.with_columns(
            name=pl.col("nameId").replace_strict(names, default="", return_dtype=pl.String)
        )
        launching = named.filter(
            pl.col("name").str.contains(LAUNCH_PATTERN) & (pl.col("returnValue").fill_null(0) == 0)
        )
        calls = launching["call"].to_numpy()
        launching = launching.with_columns(
            step_row=pl.Series(self._segments.step[self.segment[calls]]),
            is_graph=pl.col("name").str.contains(GRAPH_LAUNCH_PATTERN),
            has_work=pl.Series(self._used[calls]),
        )
        suspects = launching.filter(~pl.col("has_work"))
        if len(suspects):
            captured = self._captured(suspects)
            launching = launching.join(captured, on="call", how="anti", maintain_order="left")
        return launching.select("call", "start", "globalTid", "name", "step_row", "is_graph", "has_work")

    def _captured(self, suspects: pl.DataFrame) -> pl.DataFrame:
        ends = self._export.read(tables.RUNTIME, ("end",))["end"]
        nodes = self._export.read(tables.GRAPH_NODES, ("start", "globalTid")).sort("start")
        spans = suspects.with_columns(end=ends[suspects["call"].to_numpy()]).sort("start")
        hits = spans.join_asof(
            nodes.rename({"start": "created"}).with_columns(pl.col("created").alias("start")),
            on="start",
            by="globalTid",
            strategy="forward",
        )
        return hits.filter(pl.col("created") <= pl.col("end")).select("call")
