"""How much of each collective is waiting for the last rank, and how much is transfer.

Collective kernels spin until every rank has begun. So of a rank's kernel the time until the last rank's start is
waiting, and the rest, in which all ranks are in the collective, is transfer (with what the kernel computes itself).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import AnyInts, Bools, Codes, Ints
from nvtxmoe_analysis.core.grouping import codes, narrowed
from nvtxmoe_analysis.metrics.clocks.align import Aligned, CollectiveBounds, align, extents, moved, residuals
from nvtxmoe_analysis.metrics.clocks.fit import TOLERANCE_NS, fit_line
from nvtxmoe_analysis.metrics.collectives.match import (
    ENDS_EARLY,
    KERNELS_AT_ONCE,
    NOT_ALIGNED,
    NOT_SIMULTANEOUS,
    NOT_WAITING,
    NUMBERS_DIFFER,
    ORDER_DIFFERS,
    REASONS,
    SPLIT,
    CollectiveKernels,
    MatchedCollectives,
    kernels,
    match,
    order_agrees,
)
from nvtxmoe_analysis.metrics.collectives.names import tensor_only, waits_for_all
from nvtxmoe_analysis.run.parallel_groups import SCHEMA, TENSOR

#: A kernel whose collectives contradict causality more often than this does not run in these groups.
MOST_CONTRADICTIONS = 0.01

#: Times of several reports are compared where their clocks may be off by no more than this, or than this share of the
#: mean duration of the collective's kernels.
MOST_RESIDUAL_NS = 10_000
MOST_RESIDUAL_SHARE = 0.1

#: Columns that :func:`split` adds.
COLUMNS = {
    "ordinal": pl.Int64,
    "group_kind": pl.String,
    "group": pl.Int64,
    "ranks": pl.Int64,
    "wait_ns": pl.Int64,
    "transfer_ns": pl.Int64,
    "last_rank": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Split:
    """Collectives, split, and how the reports' clocks were aligned for it.

    Attributes:
        frame: one row a kernel, in the order of the input: its columns and COLUMNS. ``group`` is the lowest rank of
            the group of kind ``group_kind`` that took part, ``ranks`` how many it has, ``last_rank`` the one that
            began last (of equal ones the lowest). All but ``ordinal`` are null, and ``reason`` says why, where the
            kernel could not be split.
        aligned: by report.
        compared: collectives whose times could be compared; across: those of them over several reports.
        refused: collectives over several reports whose clocks are not known well enough.
        contradictions: of these, in which a rank ended before the last began, by more than the clocks may be off.
        closest_ns: the least time from the last start to the first end of the others; None where there are none.
    """

    frame: pl.DataFrame
    aligned: tuple[Aligned, ...]
    compared: int
    across: int
    refused: int
    contradictions: int
    closest_ns: int | None


def split(frame: pl.DataFrame, groups: Mapping[str, pl.DataFrame], epochs: Sequence[int | None]) -> Split:
    """Match collectives across ranks and split each kernel's duration.

    Parameters:
        frame: ``report``, ``rank``, ``step``, ``layer`` (null outside layers), ``phase``, ``kernel_name``, ``start``,
            ``end`` (ns, in the report's own time).
        groups: the kinds of groups that may take part, the widest first: ``parallel_groups.distinct``.
        epochs: unix time in ns of each report's time 0, None where it was not recorded.
    """
    filled = _filled(kernels(frame), *_known(frame), groups, epochs)
    return Split(
        frame=frame.with_columns(filled.columns(list(groups))),
        aligned=tuple(filled.aligned),
        compared=filled.compared,
        across=filled.across,
        refused=filled.refused,
        contradictions=filled.contradictions,
        closest_ns=filled.closest_ns,
    )


def _known(frame: pl.DataFrame) -> tuple[Bools, Bools]:
    """Which kernels are known to wait, and which are of tensor-parallel groups alone: see ``collective_names``."""
    names, number = frame["kernel_name"], codes(frame["kernel_name"])
    name = pl.col("kernel_name")
    outside, inside = waits_for_all(name, pl.lit(False)), waits_for_all(name, pl.lit(True))
    distinct = names.unique().drop_nulls().sort().to_frame()
    table = distinct.select(outside=outside, inside=inside, tensor=tensor_only(name)).to_numpy()
    waits = np.where(frame["phase"].is_not_null().to_numpy(), table[:, 1][number], table[:, 0][number])
    return waits, table[:, 2][number]


def _filled(
    kernels: CollectiveKernels,
    waits: Bools,
    tensor: Bools,
    groups: Mapping[str, pl.DataFrame],
    epochs: Sequence[int | None],
) -> _Filled:
    chosen = _choose(kernels, waits, tensor, groups, len(epochs))
    everything = [matched for of_kind in chosen.matched.values() for matched in of_kind]
    filled = _Filled(kernels, align(extents(kernels, everything, len(epochs)), epochs), chosen.reason)
    for kind, of_kind in chosen.matched.items():
        for matched in of_kind:
            for part_of_matches in _in_parts(matched):
                filled.fill(list(groups).index(kind), part_of_matches)
    return filled


def _in_parts(matched: MatchedCollectives) -> Iterator[MatchedCollectives]:
    """Some collectives at a time."""
    parts = 1 + matched.rows.size // KERNELS_AT_ONCE
    return (MatchedCollectives(rows) for rows in np.array_split(matched.rows, parts))


@dataclass(frozen=True)
class _Chosen:
    matched: dict[str, list[MatchedCollectives]]
    reason: Codes


def _choose(
    kernels: CollectiveKernels, waits: Bools, tensor: Bools, groups: Mapping[str, pl.DataFrame], reports: int
) -> _Chosen:
    """Which kind of group each name takes part in: the widest one in which its collectives hold together."""
    reason = np.full(len(kernels), NOT_WAITING, dtype=np.int8)
    reason[waits] = match(kernels, narrowed(np.flatnonzero(waits)), pl.DataFrame(schema=SCHEMA))[1]  # as if in no group
    matched_by_kind: dict[str, list[MatchedCollectives]] = {}
    families = int(kernels.family.max(initial=-1)) + 1
    left, judged = waits.copy(), np.zeros(len(kernels), dtype=np.bool_)
    for kind, of_kind in groups.items():
        rows = narrowed(np.flatnonzero(left & ~(tensor & (kind != TENSOR) & (TENSOR in groups))))
        matched, why = match(kernels, rows, of_kind)
        holds, breaks = _holding(extents(kernels, matched, reports), families)
        family = kernels.family[rows]
        fits = holds[family]
        off = breaks[family] & (why == SPLIT)
        why[off] = NOT_SIMULTANEOUS
        # A kernel that holds together in no group keeps the reason of the widest, or that it does not.
        fresh = fits | off | ~judged[rows]
        reason[rows[fresh]] = why[fresh]
        judged[rows] = True
        left[rows[fits]] = False
        aligned_matches = [
            _only(matched_part, holds[kernels.family[matched_part.rows[:, 0]]]) for matched_part in matched
        ]
        matched_by_kind[kind] = _in_order(kernels, aligned_matches, rows[fits], of_kind, reason)
    return _Chosen(matched_by_kind, reason)


def _in_order(
    kernels: CollectiveKernels, matched: list[MatchedCollectives], rows: AnyInts, groups: pl.DataFrame, reason: Codes
) -> list[MatchedCollectives]:
    """Of collectives outside layers those of steps in which the names come in the same order on all ranks."""
    rows = rows[(kernels.layer[rows] < 0) & ((reason[rows] == SPLIT) | (reason[rows] == NUMBERS_DIFFER))]
    reason[rows[~order_agrees(kernels, rows, groups)]] = ORDER_DIFFERS
    return [_only(part, reason[part.rows[:, 0]] == SPLIT) for part in matched]


def _only(matched: MatchedCollectives, these: Bools) -> MatchedCollectives:
    return matched if these.all() else MatchedCollectives(matched.rows[these])


def _holding(seen: CollectiveBounds, families: int) -> tuple[Bools, Bools]:
    """Of so many families, whose collectives hold together (no rank ends one before the last has begun), and whose
    don't; neither of a family that has none."""
    holds, breaks = np.zeros(families, dtype=np.bool_), np.zeros(families, dtype=np.bool_)
    for family in seen.families():
        bounds = seen.of_family(family)
        lines = (fit_line(*bounds.bounds(int(a), int(b))) for a, b in np.argwhere(np.triu(bounds.shared(), 1)))
        broken = bounds.contradictions(TOLERANCE_NS)
        holds[family] = broken.mean() <= MOST_CONTRADICTIONS and all(line.fits for line in lines)
        breaks[family] = not holds[family]
    return holds, breaks


@dataclass
class _Filled:
    """The columns, filled in by :meth:`fill`."""

    kernels: CollectiveKernels
    aligned: Sequence[Aligned]
    reason: Codes
    compared: int = 0
    across: int = 0
    refused: int = 0
    contradictions: int = 0
    closest_ns: int | None = None
    _values: dict[str, AnyInts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of_rank = self.kernels.rank.dtype
        types: dict[str, npt.DTypeLike] = {
            "group_kind": np.int8,
            "group": of_rank,
            "ranks": of_rank,
            "last_rank": of_rank,
        }
        types |= {"wait_ns": np.int64, "transfer_ns": np.int64}
        self._values = {name: np.zeros(len(self.kernels), dtype) for name, dtype in types.items()}
        self._start = moved(self.kernels.start, self.kernels.report, self.aligned)
        self._residual = residuals(self.kernels.start, self.kernels.report, self.aligned)

    def fill(self, kind: int, matched: MatchedCollectives) -> None:
        """Split collectives of one kind and size of groups."""
        rows = matched.rows[self._comparable(matched.rows)]
        start, rank = self._start[rows], self.kernels.rank[rows]
        end = start + self._duration(rows)
        last, first_end = start.max(axis=1), end.min(axis=1)
        several = self._several(rows)
        # Two reports may be off their reference by their residuals in opposite directions.
        off = np.where(several, 2 * self._residual[rows].max(axis=1), 0)
        early = last - first_end > TOLERANCE_NS + off
        self.reason[rows[early].ravel()] = ENDS_EARLY
        self.compared += len(rows)
        self.across += int(several.sum())
        self.contradictions += int(early.sum())
        rows, start, end, rank, last = rows[~early], start[~early], end[~early], rank[~early], last[~early]
        if not len(rows):
            return
        closest = int((first_end[~early] - last).min())
        self.closest_ns = closest if self.closest_ns is None else min(closest, self.closest_ns)
        wait = np.clip(last[:, None] - start, 0, end - start)
        self._values["wait_ns"][rows] = wait
        self._values["transfer_ns"][rows] = end - start - wait
        latest = np.take_along_axis(rank, start.argmax(axis=1)[:, None], axis=1)
        self._values["last_rank"][rows] = latest
        self._values["group"][rows] = rank[:, :1]
        self._values["ranks"][rows] = rows.shape[1]
        self._values["group_kind"][rows] = kind

    def _duration(self, rows: AnyInts) -> Ints:
        return self.kernels.end[rows] - self.kernels.start[rows]

    def _several(self, rows: AnyInts) -> Bools:
        """Which collectives are over several reports."""
        reports = self.kernels.report[rows]
        several: Bools = (reports != reports[:, :1]).any(axis=1)
        return several

    def _comparable(self, rows: AnyInts) -> Bools:
        """Collectives whose ranks' clocks are known against each other; the others are told so."""
        fits = np.array([report.fits for report in self.aligned])[self.kernels.report[rows]].all(axis=1)
        max_residual_ns = np.maximum(MOST_RESIDUAL_NS, MOST_RESIDUAL_SHARE * self._duration(rows).mean(axis=1))
        comparable: Bools = ~self._several(rows) | (fits & (self._residual[rows].max(axis=1) <= max_residual_ns))
        self.refused += int((~comparable).sum())
        self.reason[rows[~comparable].ravel()] = NOT_ALIGNED
        return comparable

    def columns(self, kinds: list[str]) -> list[pl.Series]:
        """The columns of COLUMNS; what was filled in is gone then."""
        ordinal = pl.Series(self.kernels.ordinal)
        del self.kernels, self._start, self._residual
        fine = pl.Series(self.reason == SPLIT)
        columns = {"ordinal": ordinal, "reason": _texts([None, *REASONS[1:]], self.reason)}
        for name in list(self._values):
            values = self._values.pop(name)
            column = _texts([*kinds, None], values) if name == "group_kind" else pl.Series(values)
            columns[name] = pl.select(pl.when(fine).then(column.cast(COLUMNS[name]))).to_series()
        return [columns[name].cast(dtype).alias(name) for name, dtype in COLUMNS.items()]


def _texts(texts: Sequence[str | None], numbers: npt.NDArray[np.integer[Any]]) -> pl.Series:
    """The text of each number."""
    return pl.Series(texts, dtype=pl.String).gather(pl.Series(numbers))
