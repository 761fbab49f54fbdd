"""Which counts count: tensor-parallel copies once, data-parallel ranks added, all reports together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.grouping import in_order
from nvtxmoe_analysis.core.parallel import CHUNK
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.tables import CountTable, TopkTable, token_rows
from nvtxmoe_analysis.run.row_order import Order
from nvtxmoe_analysis.run.stacked import Stacked

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
        order: of the cells among those of all reports.
    """

    counts: CountTable
    topk: TopkTable
    experts: dict[int, int]
    agreement: Agreement
    order: Order = field(default_factory=lambda: Order((0,), None))


def combine(counts: Sequence[CountTable], topks: Sequence[TopkTable], metas: Sequence[dict[int, Meta]]) -> Routing:
    """Merge reports; the sequences run over reports."""
    chosen, order, agreement = _first_of_group(counts, metas)
    return Routing(
        counts=chosen,
        topk=_first_topk(topks, metas),
        experts=_experts(chosen, metas),
        agreement=agreement,
        order=order,
    )


def once_a_group(counts: Sequence[CountTable], metas: Sequence[dict[int, Meta]]) -> CountTable:
    """The counts of all reports, tensor-parallel copies once, with ``report`` and ``group``; as ``Routing.counts``."""
    return _first_of_group(counts, metas)[0]


def _in_groups(frames: Sequence[pl.DataFrame], metas: Sequence[dict[int, Meta]]) -> list[pl.DataFrame]:
    """The cells or runs of each report with ``group`` and ``report``."""
    parts = []
    for report, (frame, of_pid) in enumerate(zip(frames, metas, strict=True)):
        # Without moe.meta nothing says who shares tokens with whom: such a rank stands alone.
        groups = {pid: meta.tp_group for pid, meta in of_pid.items()}
        known = pl.col("pid").replace_strict(groups, default=None, return_dtype=pl.Int64)
        parts.append(frame.with_columns(group=pl.coalesce(known, -1 - pl.col("rank")), report=pl.lit(report, pl.Int64)))
    return parts


def _by_least(parts: Sequence[pl.DataFrame], name: str) -> tuple[int, ...]:
    """Positions of the parts by their least value: put together so, most need no sorting."""
    least = [part[name].min() for part in parts]
    return tuple(sorted(range(len(parts)), key=lambda at: (least[at] is None, least[at])))


def _first_of_group(
    tables: Sequence[CountTable], metas: Sequence[dict[int, Meta]]
) -> tuple[CountTable, Order, Agreement]:
    """Each cell once; which those are; what was left out."""
    parts = _in_groups([table.cells for table in tables], metas)
    reports = _by_least(parts, "group")
    cells = Order(reports, None).together(parts)
    matrix = Stacked([tables[at].matrix for at in reports], 0)
    by = (cells[name].to_numpy() for name in ("group", "step", "layer"))
    if in_order(*by, strictly=True):  # one data-parallel rank a report, as a rule: nothing moves, nothing is left out
        return CountTable(cells, matrix.whole()), Order(reports, None), Agreement(0, 0, None)
    order = cell_order(cells)
    keys = [cells[name].to_numpy()[order] for name in ("group", "step", "layer")]
    fresh = np.ones(len(cells), dtype=np.bool_)
    if len(cells):
        fresh[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    first = np.maximum.accumulate(np.where(fresh, np.arange(len(cells)), 0))
    ranks = cells["rank"].to_numpy()[order]
    # A cell that one rank sent twice is a fault of its own (see checks.unique_keys), not a disagreement.
    copies = np.flatnonzero(~fresh & (ranks != ranks[first]))
    chunks = [copies[at : at + CHUNK] for at in range(0, len(copies), CHUNK)]
    unequal = [part[np.any(matrix.rows(order[part]) != matrix.rows(order[first[part]]), axis=1)] for part in chunks]
    differing = np.concatenate([copies[:0], *unequal])
    example = None
    if len(differing):
        at = int(differing[0])
        step, layer = int(keys[1][at]), int(keys[2][at])
        example = (int(ranks[first[at]]), int(ranks[at]), step, layer)
    agreement = Agreement(len(copies), len(differing), example)
    taken_rows = order[fresh]
    if np.array_equal(taken_rows, np.arange(len(cells))):
        return CountTable(cells, matrix.whole()), Order(reports, None), agreement
    return CountTable(cells[taken_rows], matrix.rows(taken_rows)), Order(reports, pl.Series(taken_rows)), agreement


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


def _first_topk(tables: Sequence[TopkTable], metas: Sequence[dict[int, Meta]]) -> TopkTable:
    """Of the ranks of a group the lowest one's tokens, by rank, step and layer."""
    parts = _in_groups([table.runs for table in tables], metas)
    reports = _by_least(parts, "rank")
    tables = [tables[at] for at in reports]
    before = np.cumsum([0, *map(len, tables)]).tolist()
    shifted = [parts[at].with_columns(pl.col("first") + by) for at, by in zip(reports, before, strict=False)]
    runs = pl.concat(shifted, rechunk=False)
    lowest = pl.col("rank") == pl.col("rank").min().over("group", "step", "layer")
    chosen = runs.with_row_index("at").filter(lowest).sort("rank", "step", "layer", "at")["at"]
    arrays = (
        Stacked([table.token for table in tables], 0),
        Stacked([table.experts for table in tables], -1),
        Stacked([table.weights for table in tables], np.nan),
    )
    if np.array_equal(chosen, np.arange(len(runs))):
        return TopkTable(runs, *(array.whole() for array in arrays))
    runs, index = token_rows(runs[chosen])
    return TopkTable(runs, *(array.rows(index) for array in arrays))


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
