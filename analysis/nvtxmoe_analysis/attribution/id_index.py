"""Exact lookups by (process, id) over millions of rows.

Of 5 million lookups in 7 million rows, this index takes 1.3 s of CPU, a sorted search 3.1 s, and a polars join 3.6 to
5.5 s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Ints

#: A direct table consists of blocks of so many ids (a power of two); those without any id are left out.
#: Launches of CUDA graphs are about 20 ids apart: blocks of 128 take 1.7 times the memory, and no less time.
BLOCK_BITS = 3
BLOCK = 1 << BLOCK_BITS
#: The list of blocks may have so many of them per row, plus a constant. Where ids are further apart it would be larger
#: than sorted keys.
BLOCKS_PER_ROW = 4
DENSE_CONSTANT = 1 << 20
#: Bits of an id; CUPTI's correlation ids are 32-bit.
ID_BITS = 38


class Index:
    """Row of each (process, id). Ids repeat between processes; of rows with one key the first counts.

    CUDA hands out correlation ids by counting, so a table indexed by id costs two memory accesses a lookup. Where
    ids are sparse the keys are sorted and searched instead.

    Attributes:
        repeated: rows whose key an earlier row has.
        dense: which of the two ways is in use.
    """

    def __init__(self, pid: npt.NDArray[np.integer[Any]], ident: Ints) -> None:
        self._pids = np.unique(pid).astype(np.int64)
        slot = self._slot(pid)
        bounds = [ident[slot == s] for s in range(len(self._pids))]
        self._low = np.array([b.min() for b in bounds], dtype=np.int64)
        self._span = np.array([b.max() for b in bounds], dtype=np.int64) - self._low + 1
        span = sum(int(s) for s in self._span)
        self._base = np.concatenate([[0], np.cumsum(self._span)]).astype(np.int64)
        where = self._base[slot] + ident - self._low[slot]
        self.dense = self._make_blocks(where, span)
        if self.dense:
            self._make_table(where)
        else:
            keys = (slot << ID_BITS) | (ident - self._low[slot])
            self._order = np.argsort(keys, kind="stable").astype(np.int32)
            self._keys = keys[self._order]
            self.repeated = int(np.count_nonzero(self._keys[1:] == self._keys[:-1]))

    def _make_blocks(self, where: Ints, span: int) -> bool:
        """Number the blocks that hold any id, if there are few enough blocks. Block 0 is the empty one."""
        blocks = (span >> BLOCK_BITS) + 1
        if blocks > BLOCKS_PER_ROW * len(where) + DENSE_CONSTANT:
            return False
        self._block = np.zeros(blocks, dtype=np.int32)
        self._block[where >> BLOCK_BITS] = 1
        used = self._block.astype(np.bool_)
        np.cumsum(self._block, out=self._block)
        self._block *= used
        return True

    def _make_table(self, where: Ints) -> None:
        # 1 + row, 0 for none.
        self._table = np.zeros((int(self._block.max(initial=0)) + 1) * BLOCK, dtype=np.int32)
        place = self._place(where)
        rows = np.arange(1, len(where) + 1, dtype=np.int32)
        self._table[place] = rows
        self.repeated = int(np.count_nonzero(self._table[place] != rows))
        if self.repeated:  # written backwards, of rows with one key the first stays
            self._table[place[::-1]] = rows[::-1]

    def _place(self, where: Ints) -> Ints:
        """Position in the table of a position in the span of all ids."""
        block: Ints = self._block[where >> BLOCK_BITS].astype(np.int64)
        return (block << BLOCK_BITS) | (where & (BLOCK - 1))

    def _slot(self, pid: npt.NDArray[np.integer[Any]]) -> Ints:
        """Number of each process among those that have rows, -1 for the others."""
        if len(self._pids) == 1:
            return np.where(pid == self._pids[0], 0, -1)
        slot = np.searchsorted(self._pids, pid)
        slot[slot == len(self._pids)] = 0
        return np.where(self._pids[slot] == pid, slot, -1)

    def find(self, pid: Ints, ident: Ints) -> npt.NDArray[np.int32]:
        """Row of each (pid, ident), -1 where there is none."""
        if len(self._low) == 0:
            return np.full(len(ident), -1, dtype=np.int32)
        slot = self._slot(pid)
        offset = ident - self._low[slot]
        known = (slot >= 0) & (offset >= 0) & (offset < self._span[slot])
        if self.dense:
            place = self._place(np.where(known, self._base[slot] + offset, 0))
            row: npt.NDArray[np.int32] = self._table[np.where(known, place, 0)] - np.int32(1)
            return row
        keys = (slot << ID_BITS) | np.where(known, offset, 0)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return np.where(known & (self._keys[at] == keys), self._order[at], -1).astype(np.int32)
