"""GPU work by step and class, and work outside layers by name: sums over batches of placed operations.

A step's work is what was launched in it; work launched outside steps counts to the last step that had begun in its
process (docs/explanation/attribution.md). Sums are over whole exports: a filter of layers does not narrow them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.attribution import kernel_classes
from nvtxmoe_analysis.attribution.placed import IN_IDLE, IN_LAYER, IN_STEP, OUTSIDE, UNPLACED, PlacedBatch
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.grouping import dense, sums

#: What a step's work is summed by: the classes outside layers, and the rest.
STEP_PHASES = tuple(f"step_{name}" for name in kernel_classes.CLASSES)
SLOTS = (*STEP_PHASES, "step_unplaced", "between_steps", "idle", "layers")
UNPLACED_SLOT, BETWEEN_SLOT, IDLE_SLOT, LAYERS_SLOT = range(len(STEP_PHASES), len(SLOTS))

#: Columns of ``Work.by_name``.
BY_NAME = {
    "pid": pl.Int64,
    "kept": pl.Boolean,
    "slot": pl.Int8,
    "kind": pl.Int8,
    "name": pl.Int64,
    "graph": pl.Boolean,
    "count": pl.Int64,
    "total_ns": pl.Int64,
    "min_ns": pl.Int64,
    "max_ns": pl.Int64,
}
_GROUP = ("pid", "kept", "slot", "kind", "name", "graph")
#: Columns of ``Work.by_step``.
BY_STEP = {"key": pl.Int64, "time_ns": pl.Int64}


@dataclass(frozen=True)
class Work:
    """Sums of one batch, or of an export.

    Attributes:
        by_step: ``key`` (row of the step times the number of SLOTS, plus the slot) and ``time_ns``.
        by_name: work outside layers: BY_NAME. ``kept`` says whether its step is inside the selection.
    """

    by_step: pl.DataFrame
    by_name: pl.DataFrame


def sum_batch(batch: PlacedBatch, classes: npt.NDArray[np.int8], kept_steps: npt.NDArray[np.bool_] | None) -> Work:
    """The sums of a batch.

    Parameters:
        classes: as of ``KernelClasses.of``.
        kept_steps: by row of the step, whether it is inside the selection; None for all.
    """
    step, slot = steps_and_slots(batch, classes)
    duration = batch.duration
    return Work(_by_step(step, slot, duration), _by_name(batch, step, slot, duration, kept_steps))


def steps_and_slots(batch: PlacedBatch, classes: npt.NDArray[np.int8]) -> tuple[Ints, Ints]:
    """The step (its row, -1: none) and the slot (index into SLOTS, -1: none) that each operation counts to.

    Parameters:
        classes: as of ``KernelClasses.of``.
    """
    slot = np.full(len(batch.place), -1, dtype=np.int64)
    slot[batch.place == IN_LAYER] = LAYERS_SLOT
    in_step = batch.place == IN_STEP
    slot[in_step] = classes[in_step]
    slot[(batch.place == UNPLACED) & (batch.step_row >= 0)] = UNPLACED_SLOT
    outside = batch.place == OUTSIDE
    slot[outside] = np.where(batch.reason[outside] == IN_IDLE, IDLE_SLOT, BETWEEN_SLOT)
    return np.where(outside, batch.after_step, batch.step_row).astype(np.int64), slot


def outside_layers(
    step: Ints, slot: Ints, kept_steps: npt.NDArray[np.bool_] | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
    """Positions of the work outside layers, and which of it is inside the selection.

    Parameters:
        step, slot: as of :func:`steps_and_slots`.
        kept_steps: by row of the step, whether it is inside the selection; None for all.
    """
    if kept_steps is not None:
        kept_steps = np.append(kept_steps, np.False_)  # -1 finds it
    # What was launched before the first step belongs to none; idle batches are a rank's own work all the same.
    at = np.flatnonzero((slot >= 0) & (slot != LAYERS_SLOT) & ((step >= 0) | (slot == IDLE_SLOT)))
    return at, np.ones(len(at), dtype=np.bool_) if kept_steps is None else kept_steps[step[at]]


def _by_step(step: Ints, slot: Ints, duration: Ints) -> pl.DataFrame:
    numbered = np.flatnonzero((step >= 0) & (slot >= 0))
    keys, index = dense(step[numbered] * len(SLOTS) + slot[numbered])
    return pl.DataFrame({"key": keys, "time_ns": sums(index, duration[numbered], len(keys))}, schema=BY_STEP)


def _by_name(
    batch: PlacedBatch, step: Ints, slot: Ints, duration: Ints, kept_steps: npt.NDArray[np.bool_] | None
) -> pl.DataFrame:
    at, inside = outside_layers(step, slot, kept_steps)
    names = batch.name.gather(at).to_numpy()
    name, name_index = dense(names)
    pids, pid_index = dense(batch.pid[at])
    sizes = (len(pids), 2, len(SLOTS), 2, len(name))
    code = pid_index
    for size, part in zip(sizes[1:], (inside, slot[at], batch.graph[at], name_index), strict=True):
        code = code * size + part
    groups, index = dense(code)
    lasted = duration[at]
    shortest = np.full(len(groups), np.iinfo(np.int64).max)
    longest = np.full(len(groups), np.iinfo(np.int64).min)
    np.minimum.at(shortest, index, lasted)
    np.maximum.at(longest, index, lasted)
    of_pid, of_kept, of_slot, of_graph, of_name = np.unravel_index(groups, sizes) if len(groups) else [groups] * 5
    return pl.DataFrame(
        {
            "pid": pids[of_pid],
            "kept": of_kept == 1,
            "slot": of_slot.astype(np.int8),
            "kind": np.full(len(groups), batch.kind, dtype=np.int8),
            "name": name[of_name],
            "graph": of_graph == 1,
            "count": np.bincount(index, minlength=len(groups)),
            "total_ns": sums(index, lasted, len(groups)),
            "min_ns": shortest,
            "max_ns": longest,
        },
        schema=BY_NAME,
    )


def add(parts: Sequence[Work]) -> Work:
    """The sums of all batches."""
    by_step = pl.concat([pl.DataFrame(schema=BY_STEP), *(part.by_step for part in parts)])
    by_name = pl.concat([pl.DataFrame(schema=BY_NAME), *(part.by_name for part in parts)])
    return Work(
        by_step.group_by("key").agg(pl.col("time_ns").sum()),
        by_name.group_by(_GROUP).agg(pl.col("count", "total_ns").sum(), pl.col("min_ns").min(), pl.col("max_ns").max()),
    )


def in_steps(done: Work, *, only_kept: bool = False) -> pl.DataFrame:
    """Work in steps outside layers: ``name``, ``kind``, ``operations``, ``time_ns``, sorted by name and kind.

    Parameters:
        only_kept: of steps inside the selection.
    """
    inside = pl.col("kept") if only_kept else pl.lit(True)
    return (
        done.by_name.filter((pl.col("slot") < len(STEP_PHASES)) & inside)
        .group_by("name", "kind")
        .agg(pl.col("count").sum().alias("operations"), pl.col("total_ns").sum().alias("time_ns"))
        .sort("name", "kind")
    )


def step_work(by_step: pl.DataFrame, first_rows: pl.Series) -> pl.DataFrame:
    """The sums as a table: ``step_row`` and the columns of SLOTS (ns), a row a step.

    Parameters:
        first_rows: of every row of the steps the first that has its number; ranges that repeat it are added there,
            and have no row of their own.
    """
    table = np.zeros((len(first_rows), len(SLOTS)), dtype=np.int64)
    row, slot = np.divmod(by_step["key"].to_numpy(), len(SLOTS))
    np.add.at(table, (first_rows.to_numpy()[row], slot), by_step["time_ns"].to_numpy())
    rows = first_rows.unique().sort()
    return pl.DataFrame({"step_row": rows, **dict(zip(SLOTS, table[rows.to_numpy()].T, strict=True))})


def outside_timings(by_name: pl.DataFrame, names: Mapping[int, str], ranks: Mapping[int, int]) -> pl.DataFrame:
    """Work outside layers by rank, phase (of SLOTS), name and way of launch.

    Parameters:
        names: texts of ``name``.
        ranks: by process; work of a process without a rank has a null there.

    Returns:
        The columns of ``layer_sums.kernel_timings``; ``layer_idx`` is null.
    """
    slots = dict(enumerate(SLOTS))
    return by_name.filter("kept").select(
        pl.col("pid").replace_strict(dict(ranks), default=None, return_dtype=pl.Int64).alias("rank"),
        pl.lit(None, pl.Int64).alias("layer_idx"),
        pl.col("slot").replace_strict(slots, return_dtype=pl.String).alias("phase"),
        pl.col("name").replace_strict(dict(names), default="", return_dtype=pl.String).alias("kernel_name"),
        pl.when("graph").then(pl.lit("graph")).otherwise(pl.lit("eager")).alias("launched_by"),
        "count",
        "total_ns",
        "min_ns",
        "max_ns",
    )
