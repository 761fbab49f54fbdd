"""Exact lookups by (process, id) over millions of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: A direct table may be this many times larger than the rows it indexes, plus a constant. Launches are one call in
#: 1.2 to 4.5 (docs/nsys.md) and share the counter of ids with other activity.
DENSE_FACTOR = 24
DENSE_CONSTANT = 1 << 20
#: Bits of an id; CUPTI's correlation ids are 32-bit.
ID_BITS = 38
#: Bits of a process id in nsys's global ids.
PID_BITS = 24


class Index:
    """Row of each (process, id). Ids repeat between processes; of rows with one key the first counts.

    CUDA hands out correlation ids by counting, so a table indexed by id costs one memory access a lookup. Where
    ids are sparse the keys are sorted and searched instead.

    Attributes:
        repeated: rows whose key an earlier row has.
        dense: which of the two ways is in use.
    """

    def __init__(self, pid: npt.NDArray[np.integer[Any]], ident: Ints) -> None:
        pids = np.unique(pid)
        # 1 + slot of each process, 0 for one without rows: one memory access, and only touched pages cost memory.
        self._slots = np.zeros(1 << PID_BITS, dtype=np.int16)
        self._slots[pids] = np.arange(1, len(pids) + 1)
        slot = self._slots[pid].astype(np.int64) - 1
        bounds = [ident[slot == s] for s in range(len(pids))]
        self._low = np.array([b.min() for b in bounds], dtype=np.int64)
        self._span = np.array([b.max() for b in bounds], dtype=np.int64) - self._low + 1
        size = sum(int(s) for s in self._span)
        self.dense = size <= DENSE_FACTOR * len(ident) + DENSE_CONSTANT
        if self.dense:
            self._base = np.concatenate([[0], np.cumsum(self._span)]).astype(np.int64)
            where = self._base[slot] + ident - self._low[slot]
            # 1 + row, 0 for none: pages without an id cost nothing.
            self._table = np.zeros(size + 1, dtype=np.int32)
            # Written backwards, so that of rows with one key the first stays.
            self._table[where[::-1]] = np.arange(len(ident), 0, -1, dtype=np.int32)
            self.repeated = int(np.count_nonzero(self._table[where] != np.arange(1, len(ident) + 1)))
        else:
            keys = (slot << ID_BITS) | (ident - self._low[slot])
            self._order = np.argsort(keys, kind="stable").astype(np.int32)
            self._keys = keys[self._order]
            self.repeated = int(np.count_nonzero(self._keys[1:] == self._keys[:-1]))

    def find(self, pid: Ints, ident: Ints) -> npt.NDArray[np.int32]:
        """Row of each (pid, ident), -1 where there is none."""
        if len(self._low) == 0:
            return np.full(len(ident), -1, dtype=np.int32)
        slot = self._slots[pid].astype(np.int64) - 1
        offset = ident - self._low[slot]
        known = (slot >= 0) & (offset >= 0) & (offset < self._span[slot])
        if self.dense:
            # The table's last entry stands for what is not there.
            where = np.where(known, self._base[slot] + offset, len(self._table) - 1)
            row: npt.NDArray[np.int32] = self._table[where] - np.int32(1)
            return row
        keys = (slot << ID_BITS) | np.where(known, offset, 0)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return np.where(known & (self._keys[at] == keys), self._order[at], -1).astype(np.int32)
