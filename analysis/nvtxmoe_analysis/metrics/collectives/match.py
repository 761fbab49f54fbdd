"""Which kernels of different ranks are one collective.

Ranks issue the collectives of a group in the same order. So the n-th kernel of a name, in a place (a layer's phase, or
outside layers) of a step, of one rank meets the n-th of every other rank of the group: where all of them have
equally many. Outside layers, the names must also come in the same order on all of them.

There are millions of kernels: they are kept in 32 bits where numbers fit, and matched some steps at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import AnyInts, Bools, Codes, Ints
from nvtxmoe_analysis.core.grouping import _INT32, _ints, codes, narrowed, packed, runs

#: Why a kernel has no split, by code; 0 is that it has one.
REASONS = (
    "",
    "rank_or_step_unknown",
    "not_known_to_wait",
    "no_group",
    "rank_not_captured",
    "rank_not_in_step",
    "numbers_differ",
    "order_differs",
    "not_simultaneous",
    "clocks_not_aligned",
    "ends_before_last_start",
)
(
    SPLIT,
    UNKNOWN,
    NOT_WAITING,
    NO_GROUP,
    NOT_CAPTURED,
    NOT_IN_STEP,
    NUMBERS_DIFFER,
    ORDER_DIFFERS,
    NOT_SIMULTANEOUS,
    NOT_ALIGNED,
    ENDS_EARLY,
) = range(len(REASONS))

#: Kernels are matched some steps at a time: about so many, or, of more, in so many parts.
KERNELS_AT_ONCE = 1 << 18
PARTS = 16


@dataclass(frozen=True)
class CollectiveKernels:
    """Collective kernels as arrays, one entry each.

    Attributes:
        report, rank, step: rank and step -1 where unknown. These and the next three are int32 where they fit.
        layer: -1 outside layers.
        family: number of its name and phase, from 0.
        ordinal: of the rank's kernels in its place (step, layer, family) the how manieth, by start, from 0.
        start, end: int64, ns, of the report's own time.
    """

    report: AnyInts
    rank: AnyInts
    step: AnyInts
    layer: AnyInts
    family: AnyInts
    ordinal: AnyInts
    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class MatchedCollectives:
    """Collectives of groups of one size.

    Attributes:
        rows: int32 or int64 [collectives, ranks], positions of kernels; a row's ranks rise.
    """

    rows: AnyInts


def kernels(frame: pl.DataFrame) -> CollectiveKernels:
    """Collective kernels: ``report``, ``rank``, ``step``, ``layer``, ``phase``, ``kernel_name``, ``start``, ``end``."""
    report, rank, step, layer = (_ints(frame[name]) for name in ("report", "rank", "step", "layer"))
    phase = np.where(layer >= 0, codes(frame["phase"]), -1)
    family = narrowed(packed([codes(frame["kernel_name"]), phase]))
    start = frame["start"].to_numpy()
    ordinal = _positions(packed([rank, step, layer, family]), start)
    return CollectiveKernels(report, rank, step, layer, family, ordinal, start, frame["end"].to_numpy())


def match(kernels: CollectiveKernels, rows: AnyInts, groups: pl.DataFrame) -> tuple[list[MatchedCollectives], Codes]:
    """Match the kernels at these positions within groups.

    Parameters:
        groups: ``rank``, ``group``, ``size``, see ``rank_groups``.

    Returns:
        The collectives that all ranks of a group took part in, by group, step, layer, family and ordinal, and why
        others were not: a reason for each of ``rows``.
    """
    reason = np.full(len(rows), SPLIT, dtype=np.int8)
    parts: dict[int, list[AnyInts]] = {}
    for at in _some_steps(kernels.step[rows]):
        group_rows = rows[at]
        matched, reason[at] = _match(kernels, group_rows, groups)
        for width, positions in matched.items():
            parts.setdefault(width, []).append(group_rows[positions].reshape(-1, width))
    return [
        MatchedCollectives(_by_group(kernels, np.concatenate(parts[width]), groups)) for width in sorted(parts)
    ], reason


def _some_steps(step: AnyInts) -> Iterator[Ints]:
    """Positions of some steps at a time."""
    starts = np.arange(0, len(step), max(KERNELS_AT_ONCE, -(-len(step) // PARTS)))
    edges = np.unique(np.partition(step, starts)[starts])
    for at in range(len(edges)):
        steps_of_chunk = step >= edges[at]
        if at + 1 < len(edges):
            steps_of_chunk &= step < edges[at + 1]
        yield np.flatnonzero(steps_of_chunk)


def _match(kernels: CollectiveKernels, rows: AnyInts, groups: pl.DataFrame) -> tuple[dict[int, Ints], Codes]:
    """As :func:`meet`: positions among ``rows`` of the kernels of collectives, by the size of groups."""
    rank, step = kernels.rank[rows], kernels.step[rows]
    group, size, captured = _of_ranks(groups, rank)
    reason = np.where((rank < 0) | (step < 0), UNKNOWN, SPLIT).astype(np.int8)
    reason[(reason == SPLIT) & (group < 0)] = NO_GROUP
    reason[(reason == SPLIT) & (captured < size)] = NOT_CAPTURED
    at = np.flatnonzero(reason == SPLIT)
    if not len(at):
        return {}, reason
    ordinal = kernels.ordinal[rows[at]]
    key = packed([group[at], step[at], kernels.layer[rows[at]], kernels.family[rows[at]]])
    order = np.argsort(packed([key, ordinal, rank[at]]), kind="stable")
    at, key, ordinal = at[order], key[order], ordinal[order]
    first, count = runs(key, ordinal)
    # Of a set (a place of a group) the first run has a kernel of every rank that has any, the last one of those that
    # have most. As many as the group has ranks in both means that all have equally many.
    set_first, set_runs = runs(key[first])
    size_of = size[at][first[set_first]]
    complete_sets = (count[set_first] == size_of) & (count[set_first + set_runs - 1] == size_of)
    fine = np.repeat(np.repeat(complete_sets, set_runs), count)
    in_step = _ranks_in_step(group[at], step[at], rank[at])
    reason[at[~fine]] = np.where(in_step < size[at], NOT_IN_STEP, NUMBERS_DIFFER)[~fine]
    matched_at = at[fine]
    return {int(width): matched_at[size[matched_at] == width] for width in np.unique(size[matched_at])}, reason


def _by_group(kernels: CollectiveKernels, rows: AnyInts, groups: pl.DataFrame) -> AnyInts:
    """Collectives in the order of their groups, within a group as they come."""
    group = _of_ranks(groups, kernels.rank[rows[:, 0]])[0]
    if (group[1:] >= group[:-1]).all():
        return rows
    ordered: AnyInts = rows[np.argsort(group, kind="stable")]
    return ordered


def over_same_reports(kernels: CollectiveKernels, sets: MatchedCollectives) -> Iterator[tuple[AnyInts, AnyInts]]:
    """Runs of collectives over the same reports: rows of ``sets``, and the report that each column's kernels are in."""
    changes = np.zeros(max(0, len(sets.rows) - 1), dtype=np.bool_)
    for column in sets.rows.T:
        report = kernels.report[column]
        changes |= report[1:] != report[:-1]
    for rows in np.split(sets.rows, np.flatnonzero(changes) + 1):
        if len(rows):
            yield rows, kernels.report[rows[0]]


def order_agrees(kernels: CollectiveKernels, rows: AnyInts, groups: pl.DataFrame) -> Bools:
    """Whether the names outside layers come in one order on all ranks of the group, by kernel of ``rows``.

    Parameters:
        rows: positions of kernels outside layers, of one kind of group.
    """
    agrees = np.ones(len(rows), dtype=np.bool_)
    for at in _some_steps(kernels.step[rows]):
        agrees[at] = _order_agrees(kernels, rows[at], groups)
    return agrees


def _order_agrees(kernels: CollectiveKernels, rows: AnyInts, groups: pl.DataFrame) -> Bools:
    group, size, _ = _of_ranks(groups, kernels.rank[rows])
    together = packed([group, kernels.step[rows]])
    position = _positions(packed([together, kernels.rank[rows]]), kernels.start[rows])
    order = np.argsort(packed([together, position]), kind="stable")
    first, count = runs(together[order], position[order])
    family = kernels.family[rows][order]
    same = np.minimum.reduceat(family, first) == np.maximum.reduceat(family, first) if len(first) else np.ones(0, bool)
    wrong = ~(same & (count == size[order][first]))
    return ~np.isin(together, together[order][first[wrong]])


def _positions(key: AnyInts, start: Ints) -> AnyInts:
    """Of the rows of each key the how manieth, by start; those of equal start as they come."""
    at = np.argsort(key, kind="stable")
    key, starts = key[at], start[at]
    same = key[1:] == key[:-1]
    if (same & (starts[1:] < starts[:-1])).any():
        at = at[np.lexsort((starts, key))]
    del key, starts
    number = np.arange(len(at), dtype=np.int32 if len(at) <= _INT32.max else np.int64)
    first = number.copy()
    first[1:][same] = 0
    positions = np.empty_like(number)
    positions[at] = number - np.maximum.accumulate(first)
    return positions


def _of_ranks(groups: pl.DataFrame, rank: AnyInts) -> tuple[Ints, Ints, Ints]:
    """Group, its size and how many ranks of it were captured, of each rank; -1, 0 and 0 where it is in none."""
    known = groups.with_columns(captured=pl.len().over("group"))
    last = int(known["rank"].to_numpy().max(initial=-1)) + 1
    table = np.tile(np.array([[-1], [0], [0]]), last + 1)  # the entry past the last rank stands for those in no group
    table[:, known["rank"].to_numpy()] = known.select("group", "size", "captured").to_numpy().T
    at = np.where((rank < 0) | (rank > last), last, rank)
    return table[0][at], table[1][at], table[2][at]


def _ranks_in_step(group: AnyInts, step: AnyInts, rank: AnyInts) -> Ints:
    """How many ranks of a kernel's group have any collective in its step."""
    together = packed([group, step])
    of_rank = np.unique(packed([together, rank]), return_index=True)[1]
    numbers, count = np.unique(together[of_rank], return_counts=True)
    return count[np.searchsorted(numbers, together)].astype(np.int64)
