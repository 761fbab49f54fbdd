"""Which ranks work together, as moe.meta tells.

Global ranks are numbered data-parallel engine first, then pipeline stage, then tensor-parallel rank (vLLM,
distributed/parallel_state.py). Ranks of one stage hold the same layers: all of them share the experts of a layer,
by expert parallelism or, without it, by dividing every expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from nvtxmoe_analysis.events.meta import Meta

#: Kinds of groups, the widest first: those that share a layer's experts; the same place in every data-parallel
#: engine; tensor-parallel groups.
EXPERT, DATA, TENSOR = KINDS = ("expert", "data", "tensor")

SCHEMA = {"rank": pl.Int64, "group": pl.Int64, "size": pl.Int64}


def rank_groups(metas: Iterable[Meta]) -> dict[str, pl.DataFrame]:
    """The groups of each kind: ``rank``, ``group`` (its lowest captured rank), ``size`` (ranks that it has).

    ``size`` may be more than the ranks that were captured. A rank whose moe.meta is missing is in no group. Ranks whose
    groups have different sizes, as after a change of ranks during the run, are in different groups.
    """
    rows: dict[str, list[tuple[int, tuple[int, ...], int]]] = {kind: [] for kind in KINDS}
    for meta in metas:
        for kind, (key, size) in _of_rank(meta).items():
            rows[kind].append((meta.rank, key, size))
    return {kind: _frame(sets) for kind, sets in rows.items()}


def distinct(groups: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Those kinds that have a group of several ranks and are not the same groups as a wider kind."""
    distinct_groups: dict[str, pl.DataFrame] = {}
    for kind, frame in groups.items():
        several = frame.filter(pl.col("size") > 1)
        if len(several) and not any(several.equals(other) for other in distinct_groups.values()):
            distinct_groups[kind] = several
    return distinct_groups


def data_parallel_size(meta: Meta) -> int:
    """Number of data-parallel engines: what moe.meta contains, else what its expert-parallel size leaves room for."""
    return _size(meta, "dp_size") or max(1, (_size(meta, "ep_size") or 1) // meta.tp_size)


def ranks_per_engine(meta: Meta) -> int:
    """Number of ranks of one data-parallel engine: tensor-parallel ranks times pipeline stages."""
    return max(meta.tp_size, meta.world_size // data_parallel_size(meta))


def _of_rank(meta: Meta) -> dict[str, tuple[tuple[int, ...], int]]:
    tp_size, rank = meta.tp_size, meta.rank
    ep_size = _size(meta, "ep_size") or 1
    dp_size = data_parallel_size(meta)
    in_engine = ranks_per_engine(meta)
    stage = rank % in_engine // tp_size
    place = rank // in_engine * tp_size + rank % tp_size  # among the ranks of the stage
    size = ep_size if ep_size > 1 else dp_size * tp_size
    return {
        EXPERT: ((stage, size, place // size), size),
        DATA: ((stage, dp_size, rank % tp_size), dp_size),
        TENSOR: ((meta.tp_group,), tp_size),
    }


def _size(meta: Meta, key: str) -> int | None:
    value = meta.raw.get(key)
    return value if type(value) is int and value > 0 else None


def _frame(rows: list[tuple[int, tuple[int, ...], int]]) -> pl.DataFrame:
    lowest: dict[tuple[int, ...], int] = {}
    for rank, key, _ in sorted(rows):
        lowest.setdefault(key, rank)
    rows_sorted = [(rank, lowest[key], size) for rank, key, size in sorted(rows)]
    return pl.DataFrame(rows_sorted, schema=SCHEMA, orient="row")
