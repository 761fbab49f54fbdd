"""Which counts of data-parallel ranks belong together: what the experts that they share got in a step.

Data-parallel ranks have tokens of their own. Where they share the experts of a layer, by expert parallelism or by
dividing every expert, they send each other these tokens: a rank's experts get those of all of them. They run in
lockstep, and each batch takes a number, idle ones too, so batches of one number are one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.grouping import dense
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.run.idle_steps import idle_steps
from nvtxmoe_analysis.run.parallel_groups import EXPERT, rank_groups
from nvtxmoe_analysis.run.routing import once_a_group

Counts = npt.NDArray[np.integer[Any]]

KEY = ("share", "step", "layer")


@dataclass(frozen=True)
class Gathered:
    """Counts of all ranks for cells of a report.

    Attributes:
        at: int64 [known], positions of those cells of which every rank's batch is known.
        matrix: [steps and layers, experts], all ranks' counts added.
        rows: int64 [known], the row of the matrix of each of them.
        num_tokens: int64 [known], of all ranks together.
    """

    at: Ints
    matrix: Counts
    rows: Ints
    num_tokens: Ints


@dataclass(frozen=True)
class Shared:
    """Steps of ranks that share experts, as far as every rank's batch is known.

    Attributes:
        keys: KEY and ``num_tokens`` of all ranks together.
        matrix: [keys, experts] their counts, added.
    """

    keys: pl.DataFrame
    matrix: Counts

    def gathered(self, cells: pl.DataFrame) -> Gathered:
        """Of cells with KEY; ``share`` is null where a rank's experts are its own."""
        joined = cells.select(KEY).with_row_index("at").join(self.keys.with_row_index("key"), on=KEY)
        at, key, tokens = (joined[name].cast(pl.Int64).to_numpy() for name in ("at", "key", "num_tokens"))
        return Gathered(at, self.matrix, key, tokens)


@dataclass(frozen=True)
class Sharing:
    """The data-parallel ranks of a run that share experts.

    Attributes:
        share_of: number of the group that a rank shares experts in; of groups all of whose tokens are here.
        logical, physical: of counts of logical experts and of physical ones.
    """

    share_of: dict[int, int]
    logical: Shared
    physical: Shared

    def of(self, cells: pl.DataFrame, metas: Mapping[int, Meta]) -> tuple[Gathered, Gathered]:
        """What belongs to the cells of one report: counts of logical experts, and of physical ones.

        Parameters:
            cells: ``pid``, ``step``, ``layer``.
        """
        of_pid = {pid: self.share_of.get(meta.rank) for pid, meta in metas.items()}
        share = pl.col("pid").replace_strict(of_pid, default=None, return_dtype=pl.Int64).alias("share")
        keyed = cells.select(share, "step", "layer")
        return self.logical.gathered(keyed), self.physical.gathered(keyed)


def sharing(reports: Sequence[CaptureFacts], tables: tuple[CountTable, CountTable] | None = None) -> Sharing | None:
    """Put the counts of data-parallel ranks together; None where no such ranks share experts, or not all are here.

    Parameters:
        tables: counts of logical experts and of physical ones, of all steps, as ``once_a_group`` gives them, where they
            are at hand. What was selected is nothing to them: a rank's experts get the tokens of other ranks, whatever
            their batches are, all the same.
    """
    groups = _groups([meta for report in reports for meta in report.metas.values()])
    if groups.is_empty():
        return None
    if tables is None:
        metas = [report.metas for report in reports]
        events = [report.events for report in reports]
        tables = once_a_group([e.counts for e in events], metas), once_a_group([e.physical for e in events], metas)
    idle = _idle(reports, groups)
    logical, physical = (_shared(table, groups, idle) for table in tables)
    return Sharing(dict(groups.select("rank", "share").iter_rows()), logical, physical)


def _groups(metas: Sequence[Meta]) -> pl.DataFrame:
    """Ranks that share experts over several tensor-parallel groups, all of which are here: ``rank``, ``group`` (the
    tensor-parallel one), ``share``, ``position`` (of the group in its share, from 0), ``groups`` (in the share)."""
    memberships = [(meta.rank, meta.tp_group, meta.tp_size) for meta in metas]
    ranks = pl.DataFrame(memberships, schema=dict.fromkeys(("rank", "group", "tp_size"), pl.Int64), orient="row")
    return (
        rank_groups(metas)[EXPERT]
        .rename({"group": "share"})
        .join(ranks, on="rank")
        .with_columns(groups=pl.col("size") // pl.col("tp_size").max().over("share"))
        .filter(pl.col("groups") > 1, pl.col("group").n_unique().over("share") == pl.col("groups"))
        .with_columns(position=pl.col("group").rank("dense").over("share").cast(pl.Int64) - 1)
        .select("rank", "group", "share", "position", "groups")
    )


def _idle(reports: Sequence[CaptureFacts], groups: pl.DataFrame) -> pl.DataFrame:
    """``share``, ``step``, ``position`` of groups that were idle in a step, as all of their ranks that are here say."""
    steps = pl.concat([report.steps.select("rank", "step") for report in reports])
    of_rank = [
        idle_steps(report.events).select(
            pl.col("pid")
            .replace_strict({pid: meta.rank for pid, meta in report.metas.items()}, default=None, return_dtype=pl.Int64)
            .alias("rank"),
            "step",
        )
        for report in reports
    ]
    key = ["share", "step", "position"]
    return (
        pl.concat(of_rank)
        .join(groups, on="rank")
        .select(key)
        .unique()
        .join(steps.join(groups, on="rank").select(key), on=key, how="anti")
    )


def _shared(table: CountTable, groups: pl.DataFrame, idle: pl.DataFrame) -> Shared:
    known = groups.unique("group", keep="first").sort("group")
    group = table.cells["group"].to_numpy()
    place = np.searchsorted(known["group"].to_numpy(), group)
    place[place == len(known)] = 0
    row = np.flatnonzero(known["group"].to_numpy()[place] == group)
    place = place[row]
    share, position, number = (known[name].to_numpy() for name in ("share", "position", "groups"))
    columns, indices = zip(
        *(dense(values) for values in (share[place], *(table.cells[n].to_numpy()[row] for n in KEY[1:]))), strict=True
    )
    sizes = [max(1, len(column)) for column in columns]
    codes, key = dense((indices[0] * sizes[1] + indices[1]) * sizes[2] + indices[2])
    of_key = np.unravel_index(codes, sizes)
    width = int(number.max(initial=0))
    rows = np.full((len(codes), width), -1, dtype=np.int64)
    rows[key, position[place]] = row
    in_share = np.zeros(len(codes), dtype=np.int64)
    in_share[key] = number[place]
    tokens = np.zeros(len(codes), dtype=np.int64)
    np.add.at(tokens, key, table.cells["num_tokens"].to_numpy()[row])
    keys = pl.DataFrame({name: column[at] for name, column, at in zip(KEY, columns, of_key, strict=True)})
    silent = keys.select("share", "step").with_row_index("key").join(idle, on=["share", "step"])
    has_counts = (rows >= 0) | (np.arange(width) >= in_share[:, None])
    has_counts[silent["key"].to_numpy(), silent["position"].to_numpy()] = True
    complete = np.flatnonzero(has_counts.all(axis=1))
    return Shared(keys.with_columns(num_tokens=pl.Series(tokens))[complete], _added(table.matrix, rows[complete]))


def _added(matrix: Counts, rows: Ints) -> Counts:
    """[keys, experts]: of rows [keys, groups] of the matrix the sums; -1 is none."""
    largest = int(matrix.max(initial=0)) * rows.shape[1]
    added = np.zeros((len(rows), matrix.shape[1]), dtype=np.uint32 if largest < 1 << 32 else np.int64)
    for of_group in rows.T:
        has_group = np.flatnonzero(of_group >= 0)
        added[has_group] += matrix[of_group[has_group]].astype(added.dtype)
    return added
