"""Ranges that cross one another, or lie deep: which of them cover a segment, one boundary after the other."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nvtxmoe_analysis.attribution.range_kinds import IDLE, LAYER, NONE, PHASE, STEP
from nvtxmoe_analysis.core.arrays import Ints


class Seen(NamedTuple):
    """What the ranges say that are open after a boundary. The last one that began counts.

    Attributes:
        step, layer, phase: index of the range that tells it, or NONE.
        idle: one of them is moe.idle.
        crossing: two of them cross.
    """

    step: int
    layer: int
    phase: int
    idle: bool
    crossing: bool


class _Latest:
    """The largest of numbers that come and go."""

    def __init__(self) -> None:
        self._heap: list[int] = []
        self._gone: set[int] = set()

    def add(self, number: int) -> None:
        heapq.heappush(self._heap, -number)

    def remove(self, number: int) -> None:
        self._gone.add(number)

    def get(self) -> int:
        while self._heap and -self._heap[0] in self._gone:
            self._gone.remove(-heapq.heappop(self._heap))
        return -self._heap[0] if self._heap else NONE


class _Open:
    """The open ranges in the order of their starts, and how often the end of a later one lies beyond an earlier one's.

    They nest if that is never so. Ranges are added in that order, and removed in any.
    """

    def __init__(self, closes: Sequence[int]) -> None:
        self._closes = closes
        self._before: dict[int, int] = {}
        self._after: dict[int, int] = {}
        self._last = NONE
        self.rising = 0

    def add(self, row: int) -> None:
        self._before[row], self._after[row] = self._last, NONE
        if self._last != NONE:
            self._after[self._last] = row
        self.rising += self._rises(self._last, row)
        self._last = row

    def remove(self, row: int) -> None:
        before, after = self._before.pop(row), self._after.pop(row)
        self.rising += self._rises(before, after) - self._rises(before, row) - self._rises(row, after)
        if before != NONE:
            self._after[before] = after
        if after != NONE:
            self._before[after] = before
        else:
            self._last = before

    def _rises(self, first: int, second: int) -> bool:
        return NONE not in (first, second) and self._closes[first] < self._closes[second]


def open_ranges(
    index: Sequence[int], is_open: Sequence[bool], kind: Sequence[int], layer: Sequence[int], closes: Sequence[int]
) -> Iterator[Seen]:
    """Yield what the open ranges say after each boundary.

    Parameters:
        index, is_open: [boundaries] in the order of time; the range, numbered in the order of starts, and whether it
            opens. Lists: one value at a time is taken.
        kind, layer, closes: [ranges], likewise.
    """
    latest_of = {STEP: _Latest(), LAYER: _Latest(), PHASE: _Latest()}
    ranges = _Open(closes)
    idle = 0
    for row, opening in zip(index, is_open, strict=True):
        of = kind[row]
        which = [latest_of[STEP]] if of == STEP else []
        if of in {LAYER, PHASE}:
            # A phase names its layer, so that it counts where no layer range is around it.
            which = [latest_of[PHASE], *([latest_of[LAYER]] if of == LAYER or layer[row] >= 0 else [])]
        for latest in which:
            (latest.add if opening else latest.remove)(row)
        (ranges.add if opening else ranges.remove)(row)
        idle += (of == IDLE) * (1 if opening else -1)
        yield Seen(latest_of[STEP].get(), latest_of[LAYER].get(), latest_of[PHASE].get(), idle > 0, ranges.rising > 0)


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
    tables = [values]
    while (half := 1 << (len(tables) - 1)) * 2 <= len(values):
        tables.append(np.maximum(tables[-1][:-half], tables[-1][half:]))
    most = np.full(len(first), -np.iinfo(np.int64).max, dtype=np.int64)
    length = last - first
    for power, table in enumerate(tables):
        of_power = np.flatnonzero((length >> power) == 1)
        most[of_power] = np.maximum(table[first[of_power]], table[last[of_power] - (1 << power)])
    return most
