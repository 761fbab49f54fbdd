"""Which counts count: tensor-parallel copies once, data-parallel ranks added, all reports together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.events import Meta
from nvtxmoe_analysis.payload_tables import CountTable, TopkTable, stack

#: Cells worked on at a time, so that wide matrices need little memory.
CHUNK = 1 << 15
#: Numbers that a sort key may have.
MOST_KEYS = 1 << 62


@dataclass(frozen=True)
class Agreement:
    """How the copies of tensor-parallel ranks compare.

    Attributes:
        compared: copies beyond the first of a cell.
        differing: those whose counts are not the first one's.
        example: (rank, other rank, step, layer) of the first that differs.
    """

    compared: int
    differing: int
    example: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Routing:
    """Counts of all reports, each cell once.

    Attributes:
        counts: cells with ``report`` and ``group`` (tensor-parallel group), sorted by group, step, layer.
        topk: sampled tokens, likewise once.
        experts: number of experts by layer.
        agreement: of the copies that were left out.
    """

    counts: CountTable
    topk: TopkTable
    experts: dict[int, int]
    agreement: Agreement


def combine(counts: Sequence[CountTable], topks: Sequence[TopkTable], metas: Sequence[dict[int, Meta]]) -> Routing:
    """Merge reports; the sequences run over reports."""
    whole = _concat_counts(counts, metas)
    chosen, agreement = _first_of_group(whole)
    return Routing(
        counts=chosen,
        topk=_first_topk(_concat_topk(topks, metas)),
        experts=_experts(chosen, metas),
        agreement=agreement,
    )


def once_a_group(counts: Sequence[CountTable], metas: Sequence[dict[int, Meta]]) -> CountTable:
    """The counts of all reports, tensor-parallel copies once, with ``report`` and ``group``; as ``Routing.counts``."""
    return _first_of_group(_concat_counts(counts, metas))[0]


def _group(cells: pl.DataFrame, metas: dict[int, Meta]) -> pl.DataFrame:
    # Without moe.meta nothing says who shares tokens with whom: such a rank stands alone.
    groups = {pid: meta.tp_group for pid, meta in metas.items()}
    known = pl.col("pid").replace_strict(groups, default=None, return_dtype=pl.Int64)
    return cells.with_columns(group=pl.coalesce(known, -1 - pl.col("rank")))


def _concat_counts(tables: Sequence[CountTable], metas: Sequence[dict[int, Meta]]) -> CountTable:
    cells = [
        _group(t.cells, m).with_columns(report=pl.lit(i, pl.Int64))
        for i, (t, m) in enumerate(zip(tables, metas, strict=True))
    ]
    return CountTable(pl.concat(cells), _stacked([t.matrix for t in tables], 0))


def _concat_topk(tables: Sequence[TopkTable], metas: Sequence[dict[int, Meta]]) -> TopkTable:
    runs, before = [], 0
    for i, (table, meta) in enumerate(zip(tables, metas, strict=True)):
        shifted = table.runs.with_columns(pl.col("first") + before, report=pl.lit(i, pl.Int64))
        runs.append(_group(shifted, meta))
        before += len(table)
    return TopkTable(
        pl.concat(runs),
        np.concatenate([t.token for t in tables]),
        _stacked([t.experts for t in tables], -1),
        _stacked([t.weights for t in tables], np.nan),
    )


def _stacked(parts: Sequence[npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    return stack(parts, fill, np.result_type(*parts))


def _first_of_group(counts: CountTable) -> tuple[CountTable, Agreement]:
    counts = counts.take(pl.Series(cell_order(counts.cells)))
    keys = [counts.cells[name].to_numpy() for name in ("group", "step", "layer")]
    fresh = np.ones(len(counts), dtype=np.bool_)
    if len(counts):
        fresh[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(counts)), 0))
    ranks = counts.cells["rank"].to_numpy()
    # A cell that one rank sent twice is a fault of its own (see checks.unique_keys), not a disagreement.
    copies = np.flatnonzero(~fresh & (ranks != ranks[first]))
    parts = [copies[at : at + CHUNK] for at in range(0, len(copies), CHUNK)]
    unequal = [part[np.any(counts.matrix[part] != counts.matrix[first[part]], axis=1)] for part in parts]
    differing = np.concatenate([copies[:0], *unequal])
    example = None
    if len(differing):
        at = int(differing[0])
        step, layer = int(keys[1][at]), int(keys[2][at])
        example = (int(ranks[first[at]]), int(ranks[at]), step, layer)
    chosen = counts.take(pl.Series(np.flatnonzero(fresh)))
    return chosen, Agreement(len(copies), len(differing), example)


def cell_order(cells: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Positions of the cells by group, step, layer, rank, report and row.

    Most are in order, or a few runs of them are: one key and a stable sort are much faster then than a general one.
    """
    report, row = cells["report"].to_numpy(), cells["row"].to_numpy()
    key = np.zeros(len(cells), dtype=np.int64)
    size = 1
    for name in ("group", "step", "layer", "rank", "report") if len(cells) else ():
        values = cells[name].to_numpy()
        least, span = int(values.min()), int(values.max()) - int(values.min()) + 1
        size *= span
        if size > MOST_KEYS:  # numbers of a damaged file
            by = ("group", "step", "layer", "rank", "report", "row")
            return cells.select(pl.arg_sort_by(*by).cast(pl.Int64)).to_series().to_numpy()
        key = key * span + (values - least)
    in_order = np.all((report[1:] > report[:-1]) | ((report[1:] == report[:-1]) & (row[1:] > row[:-1])))
    by_row = np.arange(len(cells)) if in_order else np.lexsort((row, report))
    return by_row[np.argsort(key[by_row], kind="stable")]


def _first_topk(topk: TopkTable) -> TopkTable:
    """Of the ranks of a group the lowest one's tokens, by rank, step and layer."""
    runs = topk.runs.with_row_index("at")
    lowest = pl.col("rank") == pl.col("rank").min().over("group", "step", "layer")
    return topk.take(runs.filter(lowest).sort("rank", "step", "layer", "at")["at"].cast(pl.Int64))


def _experts(counts: CountTable, metas: Sequence[dict[int, Meta]]) -> dict[int, int]:
    seen = counts.cells.group_by("layer").agg(pl.col("num_experts").max())
    experts = dict(zip(seen["layer"].to_list(), seen["num_experts"].to_list(), strict=True))
    for report in metas:
        for meta in report.values():
            for number, layer in meta.layers.items():
                if number in experts:
                    experts[number] = max(experts[number], layer.num_experts)
    return dict(sorted(experts.items()))


def totals(counts: CountTable, experts: dict[int, int]) -> dict[int, npt.NDArray[np.int64]]:
    """Assignments an expert got in all, by layer: int64 [experts of the layer]."""
    layers = counts.cells["layer"].to_numpy()
    out: dict[int, npt.NDArray[np.int64]] = {}
    for layer, number in experts.items():
        rows = np.flatnonzero(layers == layer)
        total = np.zeros(number, dtype=np.int64)
        for at in range(0, len(rows), CHUNK):
            block = counts.matrix[rows[at : at + CHUNK], :number]
            total[: block.shape[1]] += block.sum(axis=0, dtype=np.int64)
        out[layer] = total
    return out


def cell_features(counts: CountTable) -> pl.DataFrame:
    """What the counts of each cell say, one row a cell, in the order of ``counts.cells``.

    Columns: ``total`` (assignments), ``active_experts`` (experts that got any), ``max_count``, ``min_count``,
    ``mean_count``, ``std_dev`` (population, over all experts), ``max_min_ratio`` (null where an expert got
    nothing), ``max_mean_ratio`` (null without assignments).
    """
    number = counts.cells["num_experts"].to_numpy()
    total, squares, active, most, least = (np.zeros(len(counts), dtype=np.int64) for _ in range(5))
    for at in range(0, len(counts), CHUNK):
        block = counts.matrix[at : at + CHUNK].astype(np.int64)
        rows = slice(at, at + len(block))
        total[rows] = block.sum(axis=1)
        squares[rows] = np.einsum("ij,ij->i", block, block)
        active[rows] = np.count_nonzero(block, axis=1)
        most[rows] = block.max(axis=1, initial=0)
        padded = np.arange(block.shape[1]) >= number[rows, None]
        least[rows] = np.where(padded, np.iinfo(np.int64).max, block).min(axis=1, initial=np.iinfo(np.int64).max)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Integers up to the last division: E * sum of squares - square of the sum, over E squared.
        deviation = np.sqrt((number * squares - total * total).astype(np.float64)) / number
        frame = pl.DataFrame(
            {
                "total": total,
                "active_experts": active,
                "max_count": most,
                "min_count": least,
                "mean_count": total / number,
                "std_dev": deviation,
                "max_min_ratio": most / least,
                "max_mean_ratio": most * number / total,
            }
        )
    return frame.with_columns(
        max_min_ratio=pl.when(pl.col("min_count") > 0).then("max_min_ratio"),
        max_mean_ratio=pl.when(pl.col("total") > 0).then("max_mean_ratio"),
    )
