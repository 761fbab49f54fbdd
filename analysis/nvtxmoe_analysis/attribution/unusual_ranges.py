"""Ranges that cross one another, or lie deep: which of them cover a segment."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nvtxmoe_analysis.attribution.range_kinds import IDLE, LAYER, NONE, PHASE, STEP
from nvtxmoe_analysis.core.arrays import Bools, Ints


class Open(NamedTuple):
    """What the ranges say that are open after each boundary. Of several, the last one that began counts.

    Attributes:
        step, layer, phase: [boundaries] index of the range that tells it, or NONE.
        idle: [boundaries] one of them is moe.idle.
        crossing: [boundaries] two of them cross.
    """

    step: Ints
    layer: Ints
    phase: Ints
    idle: Bools
    crossing: Bools


def open_ranges(index: Ints, is_open: Bools, kind: Ints, layer: Ints, closes: Ints) -> Open:
    """What the open ranges say after each boundary.

    Parameters:
        index, is_open: [boundaries] in the order of time; the range, numbered in the order of starts, and whether it
            opens. Each range opens and closes.
        kind, layer, closes: [ranges]; closes in the unit of time of the order.
    """
    number = len(index)
    opened, closed = np.empty(len(kind), dtype=np.int64), np.empty(len(kind), dtype=np.int64)
    opened[index[is_open]] = np.flatnonzero(is_open)
    closed[index[~is_open]] = np.flatnonzero(~is_open)

    def latest(rows: Bools) -> Ints:
        return _latest_covering(np.flatnonzero(rows), opened[rows], closed[rows], number)

    # A phase names its layer, so that it counts where no layer range is around it.
    inside = (kind == LAYER) | (kind == PHASE)
    idle = np.cumsum((kind[index] == IDLE) * np.where(is_open, 1, -1)) > 0
    crossing = _crossing(opened, closed, closes)
    return Open(
        step=latest(kind == STEP),
        layer=latest((kind == LAYER) | (inside & (layer >= 0))),
        phase=latest(inside),
        idle=idle,
        crossing=crossing,
    )


def _latest_covering(ranges: Ints, opened: Ints, closed: Ints, number: int) -> Ints:
    """The largest of ``ranges`` that covers each of ``number`` boundaries: from ``opened`` until before ``closed``.

    A span is the union of two of the longest power of two in it; from the longest to the shortest, spans hand what
    they hold to their halves.
    """
    power = np.frexp(closed - opened)[1] - 1
    longer = np.zeros(0, dtype=np.int64)
    for current in range(int(power.max(initial=0)), -1, -1):
        half = 1 << current
        spans = np.full(number - half + 1, NONE, dtype=np.int64)
        for part in (spans[: len(longer)], spans[half : half + len(longer)]):
            np.maximum(part, longer, out=part)
        of_power = power == current
        np.maximum.at(spans, opened[of_power], ranges[of_power])
        np.maximum.at(spans, closed[of_power] - half, ranges[of_power])
        longer = spans
    return longer


def _crossing(opened: Ints, closed: Ints, closes: Ints) -> Bools:
    """Whether two of the ranges that are open after each boundary cross.

    Parameters:
        opened, closed: [ranges] their boundaries. closes: [ranges] the times of the latter.
    """
    # A range crosses earlier ones from its start until the last of them closes that close before it.
    by_end = np.argsort(closed, kind="stable")
    last = _last_below(opened[by_end], np.searchsorted(closes[by_end], closes, side="left"), opened)
    until = np.where(last == NONE, NONE, closed[by_end][last])
    crosses = until > opened
    change = np.zeros(2 * len(opened) + 1, dtype=np.int64)
    np.add.at(change, opened[crosses], 1)
    np.add.at(change, until[crosses], -1)
    crossing: Bools = np.cumsum(change)[:-1] > 0
    return crossing


def _last_below(values: Ints, before: Ints, limits: Ints) -> Ints:
    """The last position before ``before`` whose value is below the limit, for each of ``limits``; NONE without one."""
    tables = _of_blocks(values, np.minimum)
    at = before.copy()
    for power in range(len(tables) - 1, -1, -1):
        length = 1 << power
        least = tables[power][np.maximum(at - length, 0)]
        at -= np.where((at >= length) & (least >= limits), length, 0)
    last: Ints = at - 1
    return last


def number_crossing(starts: Ints, ends: Ints) -> int:
    """How many ranges cross another: one begins inside the other and ends after it.

    Parameters:
        starts: [ranges], sorted.
        ends: [ranges].
    """
    by_end = np.argsort(ends, kind="stable")
    # Of those that begin inside a range, the latest end; of those that end inside, the earliest start.
    latest_end = _most_of_spans(
        ends, np.searchsorted(starts, starts, side="right"), np.searchsorted(starts, ends, side="left")
    )
    earliest_start = -_most_of_spans(
        -starts[by_end],
        np.searchsorted(ends[by_end], starts, side="right"),
        np.searchsorted(ends[by_end], ends, side="left"),
    )
    return int(np.count_nonzero((latest_end > ends) | (earliest_start < starts)))


def _most_of_spans(values: Ints, first: Ints, last: Ints) -> Ints:
    """The largest of ``values[first:last]`` for each span, the least of 64 bits where it is empty."""
    tables = _of_blocks(values, np.maximum)
    most = np.full(len(first), -np.iinfo(np.int64).max, dtype=np.int64)
    length = last - first
    for power, table in enumerate(tables):
        of_power = np.flatnonzero((length >> power) == 1)
        most[of_power] = np.maximum(table[first[of_power]], table[last[of_power] - (1 << power)])
    return most


def _of_blocks(values: Ints, least_or_most: np.ufunc) -> list[Ints]:
    """By power: the least or most of each 2^power neighbours, by the first of them."""
    tables = [values]
    while (half := 1 << (len(tables) - 1)) * 2 <= len(values):
        tables.append(least_or_most(tables[-1][:-half], tables[-1][half:]))
    return tables
