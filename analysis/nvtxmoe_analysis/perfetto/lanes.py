"""Which slices can share a track: those that do not overlap or, where nesting is wanted, lie inside one another.

A track of a trace is a stack: what begins last must end first. Operations that run at the same time on one stream
(branches of a graph, programmatic dependent launch), and ranges that cross, need tracks of their own.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Ints


def lay(start: Ints, end: Ints, *, nested: bool = False) -> list[Ints]:
    """Put slices on as few tracks as first fit finds, and tell the order of their begins and ends.

    Parameters:
        start, end: ns; of slices of equal times the first is the outer one.
        nested: whether one may lie inside another.

    Returns:
        By track, its events in time order: twice the slice's index when it begins, one more when it ends. At one time
        ends come before begins, but for slices of no length.
    """
    # At one time the longer one is the outer one; side by side, one of no length comes first.
    rows = np.lexsort((np.arange(len(start)), -end if nested else end, start))
    if not len(rows):
        return []
    if np.all(start[rows][1:] >= np.maximum.accumulate(end[rows])[:-1]):
        return [np.stack([rows * 2, rows * 2 + 1], axis=1).ravel()]
    open_: list[list[int]] = []  # by track, the slices that are open, by index
    events: list[list[int]] = []
    begins, ends = start.tolist(), end.tolist()
    for row in rows.tolist():
        begin, stop = begins[row], ends[row]
        for stack, lane_events in zip(open_, events, strict=True):
            while stack and ends[stack[-1]] <= begin:
                lane_events.append(stack.pop() * 2 + 1)
            if not stack or (nested and stop <= ends[stack[-1]]):
                break
        else:
            stack, lane_events = [], []
            open_.append(stack)
            events.append(lane_events)
        stack.append(row)
        lane_events.append(row * 2)
    for stack, lane_events in zip(open_, events, strict=True):
        lane_events.extend(row * 2 + 1 for row in reversed(stack))
    return [np.array(lane_events, dtype=np.int64) for lane_events in events]
