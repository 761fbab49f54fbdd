"""What the experts of one rank got: the load that its own kernels work on.

Which experts those are, moe.meta says (``local_experts``). Without expert parallelism (ep_size 1) a rank holds them
all, or a slice of each. Data-parallel ranks that share experts send each other tokens: there it is the sum over their
counts of the step (see ``data_parallel``). The load is unknown, and null, in these cases:

- expert parallelism without ``local_experts``;
- data-parallel ranks not all of which are among the inputs, and steps in which one of them has neither counts nor an
  idle batch;
- EPLB: ``local_experts`` are then physical experts, whose counts moe.physical gives; where a cell has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.parallel import CHUNK, ordered_map
from nvtxmoe_analysis.events.meta import Layer, Meta
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.metrics.expert_tiles import tiles
from nvtxmoe_analysis.run.data_parallel import Gathered
from nvtxmoe_analysis.run.parallel_groups import EXPERT, rank_groups

Counts = npt.NDArray[np.integer[Any]]

LOADS = ("local_activations", "local_active_experts", "local_max_count", "local_expert_tiles")
COLUMNS = ("local_experts", *LOADS, "weight_bytes")


def local_load(
    counts: CountTable,
    physical: CountTable,
    metas: Mapping[int, Meta],
    blocks: pl.Series,
    shared: tuple[Gathered, Gathered] | None = None,
) -> pl.DataFrame:
    """COLUMNS of each cell, in the order of ``counts.cells``.

    ``local_experts`` is the number of experts (EPLB: of physical experts) that the rank holds; ``weight_bytes`` is
    local_active_experts x the bytes of an expert's weights on this rank.

    Parameters:
        physical: counts of physical experts, of the same ranks.
        blocks: ``rows_per_tile`` of each cell, see ``expert_tiles.block_sizes``.
        shared: counts of logical experts and of physical ones that belong to these cells, where data-parallel ranks
            share experts: ``data_parallel.Sharing.of``.
    """
    experts_of_ranks = _experts_of_ranks(metas)
    keyed = counts.cells.select("pid", "layer").join(
        experts_of_ranks, on=["pid", "layer"], how="left", maintain_order="left"
    )
    load = np.full((len(counts), len(LOADS)), -1, dtype=np.int64)
    masks = [_mask(metas[pid].layers[layer]) for pid, layer in experts_of_ranks.select("pid", "layer").iter_rows()]
    fill = _Fill(load, keyed["mask"], masks, blocks.to_numpy())
    known, eplb, alone = (keyed[name].fill_null(False).to_numpy() for name in ("known", "eplb", "alone"))
    logical = np.flatnonzero(known & alone & ~eplb)
    fill(logical, counts.matrix, logical)
    at, row = _physical_rows(counts, physical, known & alone & eplb)
    fill(at, physical.matrix, row)
    if shared is not None:
        for rows_of_counts, of_rank in zip(shared, (~eplb, eplb), strict=True):
            with_counts = (known & of_rank)[rows_of_counts.at]
            fill(rows_of_counts.at[with_counts], rows_of_counts.matrix, rows_of_counts.rows[with_counts])
    frame = pl.DataFrame(dict(zip(LOADS, load.T, strict=True)))
    return frame.select(
        keyed["local_experts"],
        *(pl.when(pl.col(c) >= 0).then(c) for c in LOADS),
        pl.when(pl.col("local_active_experts") >= 0)
        .then(pl.col("local_active_experts") * keyed["expert_bytes"])
        .alias("weight_bytes"),
    )


def _experts_of_ranks(metas: Mapping[int, Meta]) -> pl.DataFrame:
    """By ``pid`` and ``layer``: ``mask`` (position in this frame), ``local_experts`` (how many, null when unknown),
    ``known`` (whether it is), ``alone`` (whether only the rank's own tokens get to them), ``eplb``,
    ``expert_bytes``."""
    sharing = dict(rank_groups(metas.values())[EXPERT].select("rank", "size").iter_rows())
    rows: list[tuple[object, ...]] = []
    for pid, meta in metas.items():
        eplb = bool(meta.raw.get("eplb"))
        alone = sharing[meta.rank] <= meta.tp_size
        for number, layer in meta.layers.items():
            local = _number_held(meta, layer, eplb=eplb)
            rows.append((pid, number, len(rows), local, local is not None, alone, eplb, layer.expert_bytes))
    names = {"pid": pl.Int64, "layer": pl.Int64, "mask": pl.Int64, "local_experts": pl.Int64}
    flags = dict.fromkeys(("known", "alone", "eplb"), pl.Boolean)
    return pl.DataFrame(rows, schema={**names, **flags, "expert_bytes": pl.Int64}, orient="row")


def _number_held(meta: Meta, layer: Layer, *, eplb: bool) -> int | None:
    if layer.local_experts is not None:
        return len(set(layer.local_experts))
    if meta.raw.get("ep_size") == 1 or meta.world_size == 1:
        return None if eplb else layer.num_experts
    return None


def _mask(layer: Layer) -> Ints | None:
    """Experts that the rank holds; None for all."""
    if layer.local_experts is None:
        return None
    return np.unique(np.array(layer.local_experts, dtype=np.int64))


def _physical_rows(counts: CountTable, physical: CountTable, cells_wanted: npt.NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Positions of the wanted cells that have physical counts, and of those counts."""
    if not len(physical) or not cells_wanted.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    key = ["pid", "step", "layer"]
    cells = counts.cells.select(key).with_row_index("at").filter(pl.Series(cells_wanted))
    rows = physical.cells.select(key).with_row_index("row").unique(key, keep="first")
    joined = cells.join(rows, on=key, how="inner").cast({"at": pl.Int64, "row": pl.Int64})
    return joined["at"].to_numpy(), joined["row"].to_numpy()


class _Fill:
    """Writes loads into int64 [cells, LOADS].

    Parameters:
        mask: of each cell the number of its mask, among ``masks``: the experts that count, None for all.
    """

    def __init__(self, load: Ints, mask: pl.Series, masks: list[Ints | None], block_m: Ints) -> None:
        self._load, self._mask, self._masks, self._block_m = load, mask, masks, block_m

    def __call__(self, at: Ints, matrix: Counts, rows: Ints) -> None:
        """Of the cells ``at``, whose counts are ``rows`` of the matrix."""
        allowed = self._allowed(matrix.shape[1])
        which = self._mask.gather(at).to_numpy() if len(at) else np.zeros(0, dtype=np.int64)

        def chunk(first: int) -> None:
            part = slice(first, first + CHUNK)
            block = matrix[rows[part]] * allowed[which[part]]
            cells_of_part = at[part]
            self._load[cells_of_part, 0] = block.sum(axis=1, dtype=np.int64)
            self._load[cells_of_part, 1] = np.count_nonzero(block, axis=1)
            self._load[cells_of_part, 2] = block.max(axis=1, initial=0)
            self._load[cells_of_part, 3] = tiles(block, self._block_m[cells_of_part])

        for _ in ordered_map(chunk, range(0, len(at), CHUNK)):
            pass

    def _allowed(self, width: int) -> npt.NDArray[np.bool_]:
        """[masks, width]."""
        allowed = np.ones((len(self._masks) + 1, width), dtype=np.bool_)
        for index, mask in enumerate(self._masks):
            if mask is not None:
                allowed[index] = False
                allowed[index, mask[(mask >= 0) & (mask < width)]] = True
        return allowed
