"""Which kernels of different ranks are one collective.

Ranks issue the collectives of a group in the same order. So the n-th kernel of a name, in a place (a layer's phase, or
outside layers) of a step, of one rank meets the n-th of every other rank of the group: where all of them have
equally many. Outside layers, the names must also come in the same order on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]

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

#: Numbers that a packed key may have.
MOST_KEYS = 1 << 62


@dataclass(frozen=True)
class Kernels:
    """Collective kernels as arrays, one entry each.

    Attributes:
        report, rank, step: int64; rank and step -1 where unknown.
        layer: -1 outside layers.
        family: number of its name and phase.
        place: number of its (step, layer, family).
        ordinal: of the rank's kernels in that place the how manieth, by start.
        start, end: ns, of the report's own time.
    """

    report: Ints
    rank: Ints
    step: Ints
    layer: Ints
    family: Ints
    place: Ints
    ordinal: Ints
    start: Ints
    end: Ints

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Met:
    """Collectives of groups of one size.

    Attributes:
        rows: int64 [collectives, ranks], positions of kernels; a row's ranks rise.
    """

    rows: Ints


def kernels(frame: pl.DataFrame) -> Kernels:
    """Collective kernels: ``report``, ``rank``, ``step``, ``layer``, ``phase``, ``kernel_name``, ``start``, ``end``."""
    rank, step, layer = (frame[name].cast(pl.Int64).fill_null(-1).to_numpy() for name in ("rank", "step", "layer"))
    phase = np.where(layer >= 0, codes(frame["phase"]), -1)
    family = packed([codes(frame["kernel_name"]), phase])
    place = packed([step, layer, family])
    start = frame["start"].to_numpy()
    return Kernels(
        report=frame["report"].cast(pl.Int64).to_numpy(),
        rank=rank,
        step=step,
        layer=layer,
        family=family,
        place=place,
        ordinal=_positions(packed([rank, place]), start),
        start=start,
        end=frame["end"].to_numpy(),
    )


def meet(found: Kernels, rows: Ints, groups: pl.DataFrame) -> tuple[list[Met], Codes]:
    """Match the kernels at these positions within groups.

    Parameters:
        groups: ``rank``, ``group``, ``size``, see ``rank_groups``.

    Returns:
        The collectives that all ranks of a group took part in, and why others were not: a reason for each of ``rows``.
    """
    rank = found.rank[rows]
    group, size, captured = _of_ranks(groups, rank)
    reason = np.where(rank < 0, UNKNOWN, np.where(found.step[rows] < 0, UNKNOWN, SPLIT)).astype(np.int8)
    reason[(reason == SPLIT) & (group < 0)] = NO_GROUP
    reason[(reason == SPLIT) & (captured < size)] = NOT_CAPTURED
    at = np.flatnonzero(reason == SPLIT)
    if not len(at):
        return [], reason
    ordinal = found.ordinal[rows[at]]
    key = packed([group[at], found.place[rows[at]]])
    order = np.argsort(packed([key, ordinal, rank[at]]), kind="stable")
    at, key, ordinal = at[order], key[order], ordinal[order]
    first, count = runs(key, ordinal)
    # Of a set (a place of a group) the first run has a kernel of every rank that has any, the last one of those that
    # have most. As many as the group has ranks in both means that all have equally many.
    set_first, set_runs = runs(key[first])
    size_of = size[at][first[set_first]]
    whole = (count[set_first] == size_of) & (count[set_first + set_runs - 1] == size_of)
    fine = np.repeat(np.repeat(whole, set_runs), count)
    in_step = _ranks_in_step(group[at], found.step[rows[at]], rank[at])
    reason[at[~fine]] = np.where(in_step < size[at], NOT_IN_STEP, NUMBERS_DIFFER)[~fine]
    kept = at[fine]
    return [Met(rows[kept[size[kept] == width]].reshape(-1, int(width))) for width in np.unique(size[kept])], reason


def order_agrees(found: Kernels, rows: Ints, groups: pl.DataFrame) -> Bools:
    """Whether the names outside layers come in one order on all ranks of the group, by kernel of ``rows``.

    Parameters:
        rows: positions of kernels outside layers, of one kind of group.
    """
    group, size, _ = _of_ranks(groups, found.rank[rows])
    together = packed([group, found.step[rows]])
    position = _positions(packed([together, found.rank[rows]]), found.start[rows])
    order = np.argsort(packed([together, position]), kind="stable")
    first, count = runs(together[order], position[order])
    family = found.family[rows][order]
    same = np.minimum.reduceat(family, first) == np.maximum.reduceat(family, first) if len(first) else np.ones(0, bool)
    wrong = ~(same & (count == size[order][first]))
    return ~np.isin(together, together[order][first[wrong]])


def codes(values: pl.Series) -> Ints:
    """Number of each value among the distinct ones, in order; -1 where null."""
    numbers: Ints = (values.rank("dense").cast(pl.Int64) - 1).fill_null(-1).to_numpy()
    return numbers


def packed(columns: Sequence[Ints]) -> Ints:
    """One number for each combination of values, that rises in the order of the columns."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    size = 1
    for column in columns if len(key) else ():
        least, span = int(column.min()), int(column.max()) - int(column.min()) + 1
        if size * span > MOST_KEYS:
            column, span, least = _dense(column), len(column), 0  # noqa: PLW2901
            key, size = _dense(key), len(key)
        size *= span
        key = key * span + (column - least)
    return key


def runs(*columns: Ints) -> tuple[Ints, Ints]:
    """First position and length of every run of equal values."""
    if not len(columns[0]):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    fresh = np.ones(len(columns[0]), dtype=np.bool_)
    fresh[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    first = np.flatnonzero(fresh)
    return first, np.diff(np.append(first, len(fresh)))


def _dense(values: Ints) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _positions(key: Ints, start: Ints) -> Ints:
    """Of the rows of each key the how manieth, by start."""
    order = pl.DataFrame({"key": key, "start": start}).select(pl.arg_sort_by("key", "start").cast(pl.Int64))
    at: Ints = order.to_series().to_numpy()
    first, count = runs(key[at])
    positions = np.empty(len(key), dtype=np.int64)
    positions[at] = np.arange(len(key)) - np.repeat(first, count)
    return positions


def _of_ranks(groups: pl.DataFrame, rank: Ints) -> tuple[Ints, Ints, Ints]:
    """Group, its size and how many ranks of it were captured, of each rank; -1, 0 and 0 where it is in none."""
    known = groups.with_columns(captured=pl.len().over("group"))
    last = int(known["rank"].to_numpy().max(initial=-1)) + 1
    table = np.tile(np.array([-1, 0, 0]), (last + 1, 1))  # the row past the last rank stands for those in no group
    table[known["rank"].to_numpy()] = known.select("group", "size", "captured").to_numpy()
    of = table[np.where((rank < 0) | (rank > last), last, rank)]
    return of[:, 0], of[:, 1], of[:, 2]


def _ranks_in_step(group: Ints, step: Ints, rank: Ints) -> Ints:
    """How many ranks of a kernel's group have any collective in its step."""
    together = packed([group, step])
    of_rank = np.unique(packed([together, rank]), return_index=True)[1]
    numbers, count = np.unique(together[of_rank], return_counts=True)
    return count[np.searchsorted(numbers, together)].astype(np.int64)
