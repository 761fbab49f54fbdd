"""Rows that are out of the order in which things happen: exchanged or moved in time.

CUPTI numbers the calls of a thread as they are made, a graph's nodes as they are created, and a stream runs what one
thread gave it in the order of the calls. In the golden captures (331,000 operations of H100 and H200) no row breaks
one of the three.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.attribution.id_index import ID_BITS
from nvtxmoe_analysis.core.arrays import AnyInts, Ints
from nvtxmoe_analysis.core.grouping import order_within, packed

#: Correlation ids have 32 bits: one that falls by more has begun again from 0.
HALF_OF_IDS = 1 << 31
#: A stream runs one operation after the other. With programmatic dependent launch the next one may begin early, and
#: nodes of a graph overlap by a few us: not the one after the next, by so much.
LATER, OVERLAP_NS = 2, 20_000


def calls_disordered(tid: Ints, start_ns: Ints, correlation: Ints) -> tuple[int, int]:
    """Return how many calls have a lower correlation id than the call before them on their thread; of those whose id is
    above the lowest before, and of others: a process that gets the id of an earlier one begins anew.

    Parameters:
        tid, start_ns, correlation: int64 [calls]; ids of 0 stand for none and are left out.
    """
    known = correlation > 0
    tid, start_ns, correlation = tid[known], start_ns[known], correlation[known]
    order = order_within(tid, start_ns, correlation)
    tid, correlation = tid[order], correlation[order]
    same, fall = np.diff(tid) == 0, -np.diff(correlation)
    least = _least_so_far(np.cumsum(np.append(0, ~same))[: len(tid)], correlation)[:-1]
    falls = same & (fall > 0) & (fall < HALF_OF_IDS)
    above = int(np.count_nonzero(falls & (correlation[1:] > least)))
    return above, int(np.count_nonzero(falls)) - above


def _least_so_far(group: Ints, value: Ints) -> Ints:
    """The least value of each row's group up to it; groups are numbered in order, values have ID_BITS."""
    shift = group << ID_BITS
    least: Ints = np.minimum.accumulate(value - shift) + shift
    return least


def nodes_disordered(graph: Ints, node: Ints, created: Ints) -> int:
    """Return how many nodes were created (or, of clones: name an original) before the node before them of their graph.

    Parameters:
        graph: int64 [nodes], the number of the node's graph. node: its id. created: ns, or the original's id.
    """
    order = order_within(graph, node, created)
    return int(np.count_nonzero((np.diff(graph[order]) == 0) & (np.diff(created[order]) < 0)))


def operations_overlapping(stream: Ints, start_ns: Ints, end_ns: Ints) -> int:
    """Return how many operations go on for over OVERLAP_NS after two later ones of their stream have begun.

    Parameters:
        stream: int64 [operations], a number of each one's stream.
    """
    order = order_within(stream, start_ns)
    return _overlapping(stream[order], start_ns[order], end_ns[order])


def _overlapping(key: Ints, start_ns: Ints, end_ns: Ints) -> int:
    """The same of operations in the order of their streams and starts."""
    same = key[LATER:] == key[:-LATER]
    return int(np.count_nonzero(same & (end_ns[:-LATER] - start_ns[LATER:] > OVERLAP_NS)))


def operations_disordered(stream: Ints, start_ns: Ints, launched_ns: Ints) -> int:
    """Return how many operations begin in their stream after one of a later call of the same thread.

    Parameters:
        stream: int64 [operations], a number of each one's thread and stream. launched_ns: when its call began.
    """
    if not len(start_ns):
        return 0
    order = order_within(stream, start_ns, launched_ns)
    return int(np.count_nonzero((np.diff(stream[order]) == 0) & (np.diff(launched_ns[order]) < 0)))


def operations_of_streams(
    stream: Ints, thread: AnyInts, start_ns: Ints, end_ns: Ints, launched_ns: Ints
) -> tuple[int, int]:
    """Return :func:`operations_disordered` and :func:`operations_overlapping` of operations that all have a call.

    One thread gives a stream its work, as a rule; then one order is that of both.

    Parameters:
        stream: int64 [operations], a number of each one's stream. thread: of its call.
    """
    order = order_within(stream, start_ns)
    key, start_ns, launched_ns = stream[order], start_ns[order], launched_ns[order]
    thread, end_ns = thread[order], end_ns[order]
    overlapping = _overlapping(key, start_ns, end_ns)
    same, falls = key[1:] == key[:-1], launched_ns[1:] < launched_ns[:-1]
    if (same & (thread[1:] != thread[:-1])).any() or (same & falls & (start_ns[1:] == start_ns[:-1])).any():
        return operations_disordered(packed([key, thread]), start_ns, launched_ns), overlapping
    return int(np.count_nonzero(same & falls)), overlapping
