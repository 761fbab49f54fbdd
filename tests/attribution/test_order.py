"""Rows out of order, against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution.node_generations import Generations
from nvtxmoe_analysis.attribution.order import (
    OVERLAP_NS,
    calls_disordered,
    nodes_disordered,
    operations_disordered,
    operations_of_streams,
    operations_overlapping,
)
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
    assert operations_disordered(stream, start_ns, launched_ns) == falls(rows)


@given(ROWS, st.lists(st.integers(0, 1), min_size=30, max_size=30), st.booleans())
def test_operations_of_streams(rows: list[tuple[int, int, int]], threads: list[int], alone: bool) -> None:
    """One order or two, the numbers are those of either check by itself; ``alone``: one thread a stream."""
    stream, start_ns, launched_ns = columns(rows)
    thread = stream if alone else np.array(threads[: len(rows)], dtype=np.int64)
    end_ns = start_ns + launched_ns * OVERLAP_NS // 8
    disordered = falls([(2 * row[0] + int(t), *row[1:]) for row, t in zip(rows, thread % 2, strict=True)])
    overlapping = operations_overlapping(stream, start_ns, end_ns)
    assert operations_of_streams(stream, thread % 2, start_ns, end_ns, launched_ns) == (disordered, overlapping)


NODES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 9), st.booleans()), max_size=12)


@given(NODES)
def test_graphs_with_replayed_nodes_or_their_originals_count(nodes: list[tuple[int, int, int, bool]]) -> None:
    """Nodes of three graphs, each a clone (or not) of the first node of the list."""
    number = len(nodes)
    table = np.array(nodes, dtype=np.int64).reshape(number, 4)
    graph, low, created, replayed = table.T
    clone = np.arange(number) % 3 == 1
    made = Generations(
        pid=np.zeros(number, dtype=np.int64),
        node=((graph + 1) << 32) + low,
        from_ns=created,
        origin_tid=np.zeros(number, dtype=np.int64),
        origin_ns=np.zeros(number, dtype=np.int64),
        begun_ns=np.zeros(number, dtype=np.int64),
        resolved=np.ones(number, dtype=np.bool_),
        root=np.where(clone, 0, np.arange(number)),
        named=np.where(clone, (1 << 32) + created, -1),
        paired=clone,
        times=np.zeros(number, dtype=np.int64),
    )
    used = replayed.astype(np.bool_)
    chosen = used.copy()
    chosen[:1] |= bool((used & clone).any())
    looked_at = np.isin(graph, graph[chosen])
    rows = [(int(graph[at]), int(low[at]), int(created[at])) for at in np.flatnonzero(looked_at)]
    clones = [(int(graph[at]), int(low[at]), int(created[at])) for at in np.flatnonzero(looked_at & clone)]
    with_both = {int(graph[at]) for at in np.flatnonzero(clone)}
    alone = sum(int(graph[at]) in with_both for at in np.flatnonzero(chosen & ~clone))
    assert made.disordered(used) == falls(rows) + falls(clones) + alone


def test_a_graph_that_is_never_replayed_may_be_in_any_order() -> None:
    ids = np.array([1, 2, 3, 4], dtype=np.int64) + np.array([1, 1, 2, 2]) * (1 << 32)
    times = np.array([10, 20, 40, 30], dtype=np.int64)
    zeros, own = np.zeros(4, dtype=np.int64), np.arange(4, dtype=np.int64)
    made = Generations(
        zeros, ids, times, zeros, times, zeros, np.ones(4, dtype=np.bool_), own, zeros - 1, zeros > 0, zeros
    )
    assert made.disordered(np.array([True, True, False, False])) == 0
    assert made.disordered(np.array([False, False, True, False])) == 1


def test_a_node_that_seems_to_be_created_twice_while_its_graph_was_not() -> None:
    """The clone's row of node 2 became another one's, whose creation became that of node 2."""
    zeros = np.zeros(3, dtype=np.int64)
    ids = np.array([1, 2, 2], dtype=np.int64) + (2 << 32)
    made = Generations(
        zeros, ids, np.array([10, 20, 90]), zeros, zeros, zeros, np.ones(3, dtype=np.bool_),
        root=np.arange(3), named=np.array([(1 << 32) + 1, -1, -1]), paired=np.array([True, False, False]),
        times=np.array([1, 1, 2]),
    )  # fmt: skip
    assert made.disordered(np.array([True, False, False])) == 0
    assert made.disordered(np.array([True, False, True])) == 1


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
    assert operations_disordered(np.zeros(10, dtype=np.int64), start_ns, launched_ns) > 0
