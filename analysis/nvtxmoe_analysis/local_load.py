"""What the experts of one rank got: the load that its own kernels work on.

Which experts those are, moe.meta says (``local_experts``). Without expert parallelism (ep_size 1) a rank holds them
all, or a slice of each. Three things make the load unknown, and null:

- expert parallelism without ``local_experts``;
- data-parallel ranks (dp_size above 1): they send each other tokens, and number their steps apart, so that a rank's
  own counts are not what its experts got;
- EPLB: ``local_experts`` are then physical experts, whose counts moe.physical gives; where a cell has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.events import Layer, Meta
from nvtxmoe_analysis.parallel import ordered_map
from nvtxmoe_analysis.payload_tables import CountTable
from nvtxmoe_analysis.routing import CHUNK
from nvtxmoe_analysis.tiles import tiles

Ints = npt.NDArray[np.int64]

LOADS = ("local_activations", "local_active_experts", "local_max_count", "local_expert_tiles")
COLUMNS = ("local_experts", *LOADS, "weight_bytes")


def local_load(counts: CountTable, physical: CountTable, metas: Mapping[int, Meta], blocks: pl.Series) -> pl.DataFrame:
    """COLUMNS of each cell, in the order of ``counts.cells``.

    ``local_experts`` is the number of experts (EPLB: of physical experts) that the rank holds; ``weight_bytes`` is
    local_active_experts x the bytes of an expert's weights on this rank.

    Parameters:
        physical: counts of physical experts, of the same ranks.
        blocks: block_m of each cell.
    """
    held = _held(metas)
    keyed = counts.cells.select("pid", "layer").join(held, on=["pid", "layer"], how="left", maintain_order="left")
    load = np.full((len(counts), len(LOADS)), -1, dtype=np.int64)
    block_m = blocks.to_numpy()
    masks = [_mask(metas[pid].layers[layer]) for pid, layer in held.select("pid", "layer").iter_rows()]
    logical = np.flatnonzero((keyed["known"] & ~keyed["eplb"]).fill_null(False).to_numpy())
    _fill(load, logical, counts.matrix, logical, keyed["mask"], masks, block_m)
    at, row = _physical_rows(counts, physical, keyed)
    _fill(load, at, physical.matrix, row, keyed["mask"], masks, block_m)
    frame = pl.DataFrame(dict(zip(LOADS, load.T, strict=True)))
    return frame.select(
        keyed["local_experts"],
        *(pl.when(pl.col(c) >= 0).then(c) for c in LOADS),
        pl.when(pl.col("local_active_experts") >= 0)
        .then(pl.col("local_active_experts") * keyed["expert_bytes"])
        .alias("weight_bytes"),
    )


def _held(metas: Mapping[int, Meta]) -> pl.DataFrame:
    """By ``pid`` and ``layer``: ``mask`` (position in this frame), ``local_experts`` (how many, null when unknown),
    ``known`` (whether the rank's own counts, logical or physical, tell the load), ``eplb``, ``expert_bytes``."""
    rows: list[tuple[object, ...]] = []
    for pid, meta in metas.items():
        eplb = bool(meta.raw.get("eplb"))
        for number, layer in meta.layers.items():
            local = _number_held(meta, layer, eplb=eplb)
            known = local is not None and _dp_size(meta) == 1
            rows.append((pid, number, len(rows), local, known, eplb, layer.expert_bytes))
    names = {"pid": pl.Int64, "layer": pl.Int64, "mask": pl.Int64, "local_experts": pl.Int64}
    schema = {**names, "known": pl.Boolean, "eplb": pl.Boolean, "expert_bytes": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _number_held(meta: Meta, layer: Layer, *, eplb: bool) -> int | None:
    if layer.local_experts is not None:
        return len(set(layer.local_experts))
    if meta.raw.get("ep_size") == 1 or meta.world_size == 1:
        return None if eplb else layer.num_experts
    return None


def _dp_size(meta: Meta) -> int:
    """Data-parallel ranks; where moe.meta does not say, what expert parallelism needs beyond tensor parallelism."""
    said, ep_size = meta.raw.get("dp_size"), meta.raw.get("ep_size")
    if isinstance(said, int):
        return max(1, said)
    return max(1, ep_size // meta.tp_size) if isinstance(ep_size, int) else 1


def _mask(layer: Layer) -> npt.NDArray[np.int64] | None:
    """Experts that the rank holds; None for all."""
    if layer.local_experts is None:
        return None
    return np.unique(np.array(layer.local_experts, dtype=np.int64))


def _physical_rows(counts: CountTable, physical: CountTable, keyed: pl.DataFrame) -> tuple[Ints, Ints]:
    """Positions of the cells whose load physical counts tell, and of those counts."""
    wanted = (keyed["known"] & keyed["eplb"]).fill_null(False)
    if not len(physical) or not wanted.any():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    key = ["pid", "step", "layer"]
    cells = counts.cells.select(key).with_row_index("at").filter(wanted)
    rows = physical.cells.select(key).with_row_index("row").unique(key, keep="first")
    found = cells.join(rows, on=key, how="inner").cast({"at": pl.Int64, "row": pl.Int64})
    return found["at"].to_numpy(), found["row"].to_numpy()


def _fill(
    load: Ints,
    at: Ints,
    matrix: npt.NDArray[np.unsignedinteger[Any]],
    rows: Ints,
    mask: pl.Series,
    masks: list[npt.NDArray[np.int64] | None],
    block_m: Ints,
) -> None:
    """Write the loads of the cells ``at``, whose counts are ``rows`` of the matrix."""
    width = matrix.shape[1]
    allowed = np.ones((len(masks) + 1, width), dtype=np.bool_)
    for index, held in enumerate(masks):
        if held is not None:
            allowed[index] = False
            allowed[index, held[(held >= 0) & (held < width)]] = True
    which = mask.gather(at).to_numpy() if len(at) else np.zeros(0, dtype=np.int64)

    def chunk(first: int) -> None:
        part = slice(first, first + CHUNK)
        block = matrix[rows[part]] * allowed[which[part]]
        here = at[part]
        load[here, 0] = block.sum(axis=1, dtype=np.int64)
        load[here, 1] = np.count_nonzero(block, axis=1)
        load[here, 2] = block.max(axis=1, initial=0)
        load[here, 3] = tiles(block, block_m[here])

    for _ in ordered_map(chunk, range(0, len(at), CHUNK)):
        pass
