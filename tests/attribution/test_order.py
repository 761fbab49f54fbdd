"""Rows out of order, against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution.order import calls_disordered, nodes_disordered, operations_disordered
from nvtxmoe_analysis.core.arrays import Ints

SMALL = st.integers(0, 3)
ROWS = st.lists(st.tuples(SMALL, st.integers(0, 40), st.integers(0, 40)), max_size=30)


def columns(rows: list[tuple[int, int, int]]) -> tuple[Ints, Ints, Ints]:
    first, second, third = (np.array([row[at] for row in rows], dtype=np.int64) for at in range(3))
    return first, second, third


def falls_of_calls(rows: list[tuple[int, int, int]]) -> int:
    """The same, but for values that are not above the least before in their group."""
    ordered = sorted(row for row in rows if row[2] > 0)
    return sum(
        a[0] == b[0] and min(row[2] for row in ordered[: at + 1] if row[0] == b[0]) < b[2] < a[2]
        for at, (a, b) in enumerate(pairwise(ordered))
    )


def falls(rows: list[tuple[int, int, int]]) -> int:
    """Rows (group, order, value) whose value is below that of the row before them in their group."""
    ordered = sorted(rows)
    return sum(a[0] == b[0] and b[2] < a[2] for a, b in pairwise(ordered))


@given(ROWS)
def test_calls(rows: list[tuple[int, int, int]]) -> None:
    above = falls_of_calls(rows)
    assert calls_disordered(*columns(rows)) == (above, falls([row for row in rows if row[2] > 0]) - above)


@given(ROWS)
def test_nodes(rows: list[tuple[int, int, int]]) -> None:
    assert nodes_disordered(*columns(rows)) == falls(rows)


@given(ROWS)
def test_operations(rows: list[tuple[int, int, int]]) -> None:
    stream, start_ns, launched_ns = columns(rows)
    assert operations_disordered([stream, stream // 2], start_ns, launched_ns) == falls(rows)


def test_ids_that_begin_again_are_in_order() -> None:
    tid, start_ns = np.zeros(2, dtype=np.int64), np.array([1, 2])
    assert calls_disordered(tid, start_ns, np.array([(1 << 32) - 1, 1])) == (0, 0)
    tid, start_ns = np.zeros(3, dtype=np.int64), np.array([1, 2, 3])
    assert calls_disordered(tid, start_ns, np.array([5, 7, 6])) == (1, 0)
    assert calls_disordered(tid, start_ns, np.array([5, 7, 5])) == (0, 1)


def test_large_ids_of_several_threads() -> None:
    """The least id of a thread is its own, however large ids are."""
    high = (1 << 38) - 10
    tid, start_ns = np.array([1, 1, 2, 2, 2]), np.array([1, 2, 1, 2, 3])
    assert calls_disordered(tid, start_ns, np.array([1, 2, high, high + 2, high + 1])) == (1, 0)
    assert calls_disordered(tid, start_ns, np.array([high, high + 1, 5, 7, 5])) == (0, 1)


def test_one_exchange_is_seen() -> None:
    start_ns = np.arange(10)
    launched_ns = np.arange(10)
    launched_ns[[3, 7]] = launched_ns[[7, 3]]
    assert operations_disordered([np.zeros(10, dtype=np.int64)], start_ns, launched_ns) > 0
