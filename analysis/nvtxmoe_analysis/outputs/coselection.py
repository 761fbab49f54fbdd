"""moe_expert_coselection: which experts were chosen together within a token's top-k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.outputs.spec import INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.events.meta import Meta
    from nvtxmoe_analysis.events.tables import PairTable
    from nvtxmoe_analysis.facts.selection import Selection
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="coselection",
    stem="moe_expert_coselection",
    order=20,
    meaning="pairs of experts chosen for one token",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "vLLM's number of the MoE layer"),
        Column("expert_id_1", INTEGER, "first expert"),
        Column("expert_id_2", INTEGER, "second expert, above the first"),
        Column("coselection_count", INTEGER, "tokens that chose both (pairs within a token's top-k)"),
        Column("tokens", INTEGER, "tokens looked at: all with moe.pairs, else the sampled ones"),
    ),
    whole=("layer_idx", "expert_id_1", "expert_id_2", "coselection_count", "tokens"),
)


Triangle = npt.NDArray[np.int64]

#: Pairs of experts that got tokens (first x experts + second, rising), their counts, the number of experts, and of
#: tokens.
Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int, int]

#: A square of all experts may be this many times larger than the pairs that are counted in it, plus a constant.
#: Only damage gives a token an expert far past the others.
DENSE_FACTOR = 16
DENSE_CONSTANT = 1 << 20


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per pair of experts that was chosen together at least once."""
    sampled = _from_samples(results)
    exact = _from_pairs(results)
    # moe.pairs without a single pair are a fault (the check pairs_agree): the samples serve.
    chosen = {**exact, **sampled, **{layer: pairs for layer, pairs in exact.items() if len(pairs[0])}}
    rows = [_rows(layer, chosen[layer]) for layer in sorted(chosen)]
    return pl.concat([pl.DataFrame(schema=TABLE.types), *rows])


def _rows(layer: int, pairs: Pairs) -> pl.DataFrame:
    pair, count, experts, tokens = pairs
    return pl.DataFrame(
        {
            "layer_idx": np.full(len(pair), layer, dtype=np.int64),
            "expert_id_1": pair // experts,
            "expert_id_2": pair % experts,
            "coselection_count": count,
            "tokens": np.full(len(pair), tokens, dtype=np.int64),
        }
    )


def _from_samples(results: RunMetrics) -> dict[int, Pairs]:
    """Pairs by layer."""
    topk = results.routing.topk
    out: dict[int, Pairs] = {}
    for layer in topk.runs["layer"].unique().to_list():
        layer_topk = topk.take((topk.runs["layer"] == layer).arg_true())
        chosen = layer_topk.experts.astype(np.int64)
        number = max(1, int(chosen.max(initial=-1)) + 1)
        out[layer] = (*_counted(_coded(chosen, number), number * number, chosen.size), number, len(chosen))
    return out


def _coded(chosen: npt.NDArray[np.int64], number: int) -> Iterator[npt.NDArray[np.int64]]:
    """Every pair of every token, as ``Pairs`` has them; -1 among ``chosen`` is nobody."""
    for i, j in combinations(range(chosen.shape[1]), 2):
        low, high = np.minimum(chosen[:, i], chosen[:, j]), np.maximum(chosen[:, i], chosen[:, j])
        real = (low >= 0) & (low < high)
        yield low[real] * number + high[real]


def _counted(
    parts: Iterable[npt.NDArray[np.int64]], size: int, about: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct values among about so many below ``size``, rising, and how often each occurs."""
    if size > DENSE_FACTOR * about + DENSE_CONSTANT:
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *parts]), return_counts=True)
    counts = np.zeros(size, dtype=np.int64)
    for part in parts:
        counts += np.bincount(part, minlength=size)
    pair = np.flatnonzero(counts)
    return pair, counts[pair]


def _from_pairs(results: RunMetrics) -> dict[int, Pairs]:
    """The same from moe.pairs. A span of steps can't be divided, so with steps left out the samples serve."""
    out: dict[int, tuple[Triangle, int]] = {}
    if results.selection.narrows_steps:
        return {}
    spans = [
        _spans(table, report.metas).with_columns(report=pl.lit(i))
        for i, (report, table) in enumerate(zip(results.reports, results.pairs, strict=True))
    ]
    # Tensor-parallel ranks see the same tokens: of each group the lowest rank's.
    lowest = pl.col("rank") == pl.col("rank").min().over("group", "layer")
    for row in _selected(pl.concat(spans), results.selection).filter(lowest).iter_rows(named=True):
        layer, number = int(row["layer"]), int(row["num_experts"])
        counts = np.zeros((number, number), dtype=np.int64)
        counts[np.triu_indices(number, 1)] = results.pairs[row["report"]].pairs[int(row["at"])]
        before, tokens = out.get(layer, (np.zeros_like(counts), 0))
        out[layer] = (_added(before, counts), tokens + int(row["num_tokens"]))
    return {n: (np.flatnonzero(square), square[square > 0], len(square), tokens) for n, (square, tokens) in out.items()}


def _spans(table: PairTable, metas: Mapping[int, Meta]) -> pl.DataFrame:
    """The spans with their position and tensor-parallel group."""
    groups = {pid: meta.tp_group for pid, meta in metas.items()}
    group = pl.col("pid").replace_strict(groups, default=None, return_dtype=pl.Int64)
    return table.spans.with_row_index("at").with_columns(group=pl.coalesce(group, -1 - pl.col("rank")))


def _added(first: Triangle, other: Triangle) -> Triangle:
    """Sum of two squares, the smaller one filled up with zeros."""
    size = max(len(first), len(other))
    return sum((np.pad(part, (0, size - len(part))) for part in (first, other)), np.zeros((size, size), dtype=np.int64))


def _selected(spans: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    if selection.layers is not None:
        spans = spans.filter(pl.col("layer").is_in(list(selection.layers)))
    if selection.ranks is not None:
        spans = spans.filter(pl.col("rank").is_in(list(selection.ranks)))
    return spans
