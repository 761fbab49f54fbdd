"""The last step that had begun in a process at a time: where work launched outside steps is counted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.attribution.ranges import TIME_BITS, Segments, relative_ns
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.readers import nsys_tables


class StepStarts:
    """Where the steps of each process begin, as the segments have it."""

    def __init__(self, segments: Segments) -> None:
        self._origin_ns = segments.origin_ns
        step = segments.step
        begins = np.flatnonzero((step[1:] >= 0) & (step[1:] != step[:-1])) + 1
        # A range inside a step ends its segment: of a step's segments the first counts.
        order = np.argsort(step[begins], kind="stable")
        rows, first = np.unique(step[begins][order], return_index=True)
        keys = segments.keys[begins[order][first]]
        thread = keys >> TIME_BITS
        pid = segments.tids[thread] >> nsys_tables.TID_BITS if len(rows) else thread
        self._pids = np.unique(pid)
        packed = (np.searchsorted(self._pids, pid) << TIME_BITS) | (keys & ((1 << TIME_BITS) - 1))
        in_order = np.argsort(packed, kind="stable")
        self._keys, self._rows = packed[in_order], rows[in_order].astype(np.int32)

    def before(self, pid: Ints, time_ns: Ints) -> npt.NDArray[np.int32]:
        """Row of the last step that had begun in each process at each time, -1 where none had."""
        row = np.full(len(pid), -1, dtype=np.int32)
        if len(self._pids) == 0:
            return row
        slot = np.searchsorted(self._pids, pid)
        slot[slot == len(self._pids)] = 0
        relative = relative_ns(time_ns, self._origin_ns)
        at = np.searchsorted(self._keys, (slot.astype(np.int64) << TIME_BITS) | relative, side="right") - 1
        known = (self._pids[slot] == pid) & (at >= 0)
        known[known] = self._keys[at[known]] >> TIME_BITS == slot[known]
        row[known] = self._rows[at[known]]
        return row
