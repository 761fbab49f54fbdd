"""Processes of one report that had the same id one after the other, told apart by their moe.meta marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.latest import latest
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.readers import nsys_tables

#: Keys of moe.meta that one process never changes.
_IDENTITY = ("rank", "world_size", "tp_rank", "tp_size", "dp_rank", "dp_size", "ep_rank", "ep_size", "run_id", "pid")
#: A process is a number of 40 bits; from this bit on it counts the earlier processes that had its id.
LIFE_BIT = 64 - nsys_tables.TID_BITS


@dataclass(frozen=True)
class Lives:
    """When ids passed to another process.

    Attributes:
        begins_ns: by process, when each later process with its id set its first moe.meta mark.
    """

    begins_ns: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.begins_ns)

    def of(self, pid: Ints, time_ns: Ints) -> Ints:
        """The process that had each id at each time: the id itself, or for a later process a number of its own."""
        if not self:
            return pid
        rows = [(key, at, life) for key, begins in self.begins_ns.items() for life, at in enumerate(begins, 1)]
        keys, times, numbers = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
        row = latest(keys, times, pid, time_ns)
        return pid + np.where(row >= 0, numbers[row] << LIFE_BIT, 0)

    def with_life(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows (``pid``, ``start`` and others) with ``pid`` as :meth:`of` tells it."""
        if not self:
            return frame
        pid = self.of(frame["pid"].fill_null(0).to_numpy(), frame["start"].to_numpy())
        return frame.with_columns(pid=pl.Series(pid))


def lives_of(marks: Sequence[tuple[int, Meta]]) -> Lives:
    """Tell by moe.meta marks which process ids were used again.

    A process may repeat its moe.meta, but not change its rank or its place in a group: then it is another process.

    Parameters:
        marks: (when the mark was set, what it holds), in the order of time.
    """
    begins: dict[int, list[int]] = defaultdict(list)
    last: dict[int, list[object]] = {}
    for at, meta in marks:
        identity = [meta.raw.get(key) for key in _IDENTITY]
        if last.setdefault(meta.pid, identity) != identity:
            begins[meta.pid].append(at)
            last[meta.pid] = identity
    return Lives({pid: tuple(times) for pid, times in begins.items()})


def process_name(pid: int, others: Sequence[int] = ()) -> str:
    """A process for people: ``process 100``; if another process has that id, with what tells it apart.

    Parameters:
        others: all processes of the report.
    """
    plain = pid & nsys_tables.PID_MASK
    same_id = sorted(full_pid for full_pid in set(others) | {pid} if full_pid & nsys_tables.PID_MASK == plain)
    return f"process {plain}" + (
        f" ({same_id.index(pid) + 1} of {len(same_id)} with this id)" if len(same_id) > 1 else ""
    )
