"""moe_expert_coselection: which experts were chosen together within a token's top-k."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.payload_tables import PairTable
from nvtxmoe_analysis.results import Results

Triangle = npt.NDArray[np.int64]

SCHEMA = dict.fromkeys(("layer_idx", "expert_id_1", "expert_id_2", "coselection_count", "tokens"), pl.Int64)


def build(results: Results) -> pl.DataFrame:
    """One row a pair of experts that was chosen together at least once.

    Columns: ``layer_idx``, ``expert_id_1`` < ``expert_id_2``, ``coselection_count``, ``tokens`` (looked at: all of
    them where capture accumulated moe.pairs, else the sampled ones).
    """
    sampled = _from_samples(results)
    exact = _from_pairs(results)
    rows = [_rows(layer, *(exact.get(layer) or sampled[layer])) for layer in sorted({*sampled, *exact})]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *rows])


def _rows(layer: int, counts: Triangle, tokens: int) -> pl.DataFrame:
    first, second = np.nonzero(counts)
    return pl.DataFrame(
        {
            "layer_idx": np.full(len(first), layer, dtype=np.int64),
            "expert_id_1": first.astype(np.int64),
            "expert_id_2": second.astype(np.int64),
            "coselection_count": counts[first, second],
            "tokens": np.full(len(first), tokens, dtype=np.int64),
        }
    )


def _from_samples(results: Results) -> dict[int, tuple[Triangle, int]]:
    """Per layer, [experts, experts] counts above the diagonal, and the number of tokens."""
    topk = results.routing.topk
    out: dict[int, tuple[Triangle, int]] = {}
    for layer in topk.runs["layer"].unique().to_list():
        mine = topk.take((topk.runs["layer"] == layer).arg_true())
        chosen = mine.experts.astype(np.int64)
        number = max(results.routing.experts.get(layer, 0), int(chosen.max(initial=-1)) + 1)
        counts = np.zeros(number * number, dtype=np.int64)
        for i, j in combinations(range(chosen.shape[1]), 2):
            low, high = np.minimum(chosen[:, i], chosen[:, j]), np.maximum(chosen[:, i], chosen[:, j])
            real = (low >= 0) & (low < high)
            counts += np.bincount(low[real] * number + high[real], minlength=len(counts))
        out[layer] = (counts.reshape(number, number), len(chosen))
    return out


def _from_pairs(results: Results) -> dict[int, tuple[Triangle, int]]:
    """The same from moe.pairs. A span of steps can't be divided, so with steps left out the samples serve."""
    out: dict[int, tuple[Triangle, int]] = {}
    if results.selection.narrows_steps:
        return out
    for report, table in zip(results.reports, results.pairs, strict=True):
        for row in _own_spans(table, report.metas):
            layer, number = int(row["layer"]), int(row["num_experts"])
            if not _selected(results, layer, int(row["rank"])):
                continue
            counts = np.zeros((number, number), dtype=np.int64)
            counts[np.triu_indices(number, 1)] = table.pairs[int(row["at"])]
            before, tokens = out.get(layer, (np.zeros_like(counts), 0))
            out[layer] = (before + counts, tokens + int(row["num_tokens"]))
    return out


def _own_spans(table: PairTable, metas: object) -> list[dict[str, int]]:
    """Spans with their position; of a tensor-parallel group only those of its first rank."""
    frame = table.spans.with_row_index("at")
    firsts = {pid: meta.tp_rank == 0 for pid, meta in dict(metas).items()}  # type: ignore[call-overload]
    return [row for row in frame.iter_rows(named=True) if firsts.get(row["pid"], True)]


def _selected(results: Results, layer: int, rank: int) -> bool:
    chosen = results.selection
    return (chosen.layers is None or layer in chosen.layers) and (chosen.ranks is None or rank in chosen.ranks)
