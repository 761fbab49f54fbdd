"""Calls that share a correlation id within one process, told apart by time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.attribution.id_index import Index
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.latest import latest


class RepeatedIds:
    """The rows of an :class:`Index` whose key other rows have too.

    An operation runs after its call, so of several calls it belongs to the last one that began before it.

    Parameters:
        index: of all rows.
        pid, ident, start_ns: int64 [rows], what the index was made of, and when each call began.
    """

    def __init__(self, index: Index, pid: Ints, ident: Ints, start_ns: Ints) -> None:
        self._rows = np.zeros(0, dtype=np.int64)
        if not index.repeated:
            return
        first = index.find(pid, ident).astype(np.int64)
        shared = np.bincount(first, minlength=len(first)) > 1
        self._shared = shared
        self._rows = np.flatnonzero(shared[first])
        self._first, self._start_ns = first[self._rows], start_ns[self._rows]

    def choose(self, rows: npt.NDArray[np.int32], time_ns: Ints) -> npt.NDArray[np.int32]:
        """The rows that ``Index.find`` found, -1 for none; of repeated keys the last row before each time.

        Where no row is before the time, the row that ``Index.find`` found stays.
        """
        if not len(self._rows):
            return rows
        shared_rows = np.flatnonzero((rows >= 0) & self._shared[rows])
        row = latest(self._first, self._start_ns, rows[shared_rows].astype(np.int64), time_ns[shared_rows])
        chosen: npt.NDArray[np.int32] = rows.copy()
        chosen[shared_rows[row >= 0]] = self._rows[row[row >= 0]]
        return chosen
