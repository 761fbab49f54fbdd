"""Which step numbers the idle batches of data-parallel ranks took.

``moe.idle`` has no number of its own. But every batch of a process takes one, idle or not, so an idle batch has the
number after that of the batch before it (docs/explanation/capture.md).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe_analysis.core.grouping import runs
from nvtxmoe_analysis.events.decode import Events

#: Stand for the number of a step that has none, and of a batch that is not there.
UNKNOWN, ABSENT = -1, -2


def idle_steps(events: Events) -> pl.DataFrame:
    """``pid`` and ``step`` (Int64) of idle batches: see :func:`idle_batches`."""
    return idle_batches(events).select("pid", "step")


def idle_batches(events: Events) -> pl.DataFrame:
    """``row`` (of NVTX_EVENTS), ``pid`` and ``step`` (Int64) of idle batches.

    Left out are those between two steps whose numbers leave room for more or fewer (then some batch was not captured),
    those beside a step without a number, and all of a process that has no step.
    """
    idle = events.ranges.filter(name=schema.IDLE).select(
        "row", "pid", "start", idle=True, step=pl.lit(UNKNOWN, pl.Int64)
    )
    steps = events.steps.select(
        pl.lit(None, pl.Int64).alias("row"), "pid", "start", idle=False, step=pl.col("step").fill_null(UNKNOWN)
    )
    batches = pl.concat([steps, idle]).sort("pid", "start", maintain_order=True)
    pid, is_idle, step = (batches[name].to_numpy() for name in ("pid", "idle", "step"))
    first, size = runs(pid, is_idle)
    first, size = first[is_idle[first]], size[is_idle[first]]
    # Where a run of idle batches is the process's first or last, its neighbour is another process's, or past the end.
    owner, number = np.append(pid, -1), np.append(step, ABSENT)
    before, after = (np.where(owner[at] == pid[first], number[at], ABSENT) for at in (first - 1, first + size))
    begin = np.where(before != ABSENT, before + 1, after - size)
    numbered = (before != UNKNOWN) & (begin >= 0)  # an unknown number after them fits none of these
    numbered &= (before == ABSENT) | (after == ABSENT) | (after == begin + size)
    first, size, begin = first[numbered], size[numbered], begin[numbered]
    place = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    rows = batches["row"].gather(np.repeat(first, size) + place)
    return pl.DataFrame({"row": rows, "pid": np.repeat(pid[first], size), "step": np.repeat(begin, size) + place})
