"""How expert choice in one layer predicts that in another: mutual information, and the strongest paths.

All pairs of 60 layers are 1,770: what is counted is bounded, by looking at fewer tokens, evenly spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.events.tables import TopkTable
from nvtxmoe_analysis.metrics.token_paths import (
    MOST_SHUFFLES,
    Joint,
    LayerTokens,
    chance_bits,
    common_rows,
    entropy_bits,
    evenly,
    joint,
    mutual_information_bits,
    shuffled,
    tokens_by_layer,
)

#: Fewer tokens say nothing about mutual information.
LEAST_TOKENS = 30
#: Pairs of choices counted at most, shuffles included: of all adjacent pairs of layers, and of all others.
WORK = 300_000_000
#: What a token costs beside its pairs of choices, in those.
TOKEN_WORK = 16
#: Tokens that every pair of layers is given all the same.
TOKENS_A_PAIR = 500
#: Shuffles: the fewest and most, and how many cells (experts x experts) they may look at.
ADJACENT_SHUFFLES, OTHER_SHUFFLES = (5, MOST_SHUFFLES, 200_000), (3, 20, 50_000)
#: Paths kept of a pair of layers; of a path, the fewest tokens that took it.
ADJACENT_PATHS, OTHER_PATHS, LEAST_PATH_TOKENS = 20, 5, 5
#: Of tokens that choose independently, fewer pairs of layers than this share would show any path at all.
MOST_P = 0.05
#: 95 % of a normal distribution lie within so many standard deviations.
NORMAL_95 = 1.959964

PAIRS = {
    "layer_a": pl.Int64, "layer_b": pl.Int64, "adjacent": pl.Boolean, "tokens": pl.Int64, "tokens_sampled": pl.Int64,
    "experts_a": pl.Int64, "experts_b": pl.Int64, "mutual_information_bits": pl.Float64, "plug_in_bits": pl.Float64,
    "chance_bits": pl.Float64, "shuffles": pl.Int64, "entropy_b_bits": pl.Float64, "explained_pct": pl.Float64,
    "reason": pl.String,
}  # fmt: skip
PATHS = {
    "layer_a": pl.Int64, "expert_a": pl.Int64, "layer_b": pl.Int64, "expert_b": pl.Int64, "adjacent": pl.Boolean,
    "tokens": pl.Int64, "tokens_a": pl.Int64, "tokens_b": pl.Int64, "tokens_both": pl.Int64,
    "probability": pl.Float64, "probability_low": pl.Float64, "probability_high": pl.Float64,
    "base_probability": pl.Float64, "lift": pl.Float64,
    "p_value": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class CrossLayer:
    """``pairs``: see ``outputs.cross_layer``; ``paths``: see ``outputs.cross_layer_paths``."""

    pairs: pl.DataFrame
    paths: pl.DataFrame


@dataclass(frozen=True)
class _Pair:
    """Two layers and the tokens that both have: positions in ``a`` and ``b``."""

    a: LayerTokens
    b: LayerTokens
    rows_a: Ints
    rows_b: Ints
    adjacent: bool

    @property
    def shuffles(self) -> int:
        fewest, max_shuffles, cells = ADJACENT_SHUFFLES if self.adjacent else OTHER_SHUFFLES
        return min(max_shuffles, max(fewest, cells // max(1, len(self.a.names) * len(self.b.names))))

    @property
    def work_a_token(self) -> int:
        return (1 + self.shuffles) * (self.a.top_k * self.b.top_k + TOKEN_WORK)


def cross_layer(topk: TopkTable, layers: Sequence[int]) -> CrossLayer:
    """Compare all layers that have sampled tokens in common.

    Parameters:
        topk: sampled tokens, each once.
        layers: numbers of all MoE layers, rising: neighbours among them are adjacent.
    """
    order = {layer: at for at, layer in enumerate(layers)}
    tokens_of_layers = tokens_by_layer(topk)
    pairs = []
    for first, second in combinations(tokens_of_layers, 2):
        a, b = tokens_of_layers[first], tokens_of_layers[second]
        rows_a, rows_b = common_rows(a, b)
        if len(rows_a):
            pairs.append(_Pair(a, b, rows_a, rows_b, order.get(second, -1) - order.get(first, -1) == 1))
    share = {adjacent: WORK / max(1, sum(p.adjacent is adjacent for p in pairs)) for adjacent in (True, False)}
    compared: dict[int, tuple[tuple[Any, ...], pl.DataFrame | None]] = {}
    for at in sorted(range(len(pairs)), key=lambda at: not pairs[at].adjacent):  # those of one size share shuffles
        max_tokens = max(TOKENS_A_PAIR, int(share[pairs[at].adjacent] / pairs[at].work_a_token))
        compared[at] = _compare(pairs[at], evenly(len(pairs[at].rows_a), max_tokens))
    shuffled.cache_clear()
    rows = [compared[at][0] for at in range(len(pairs))]
    paths = [compared[at][1] for at in range(len(pairs))]
    return CrossLayer(
        pl.DataFrame(rows, schema=PAIRS, orient="row"),
        pl.concat([pl.DataFrame(schema=PATHS), *(strongest for strongest in paths if strongest is not None)]),
    )


def _compare(pair: _Pair, chosen: Ints) -> tuple[tuple[Any, ...], pl.DataFrame | None]:
    a = pair.a.experts[pair.rows_a[chosen]].astype(np.int64)
    b = pair.b.experts[pair.rows_b[chosen]].astype(np.int64)
    both = joint(a, b)
    row = (
        pair.a.layer, pair.b.layer, pair.adjacent, both.tokens, len(pair.rows_a),
        int(np.count_nonzero(both.of_a)), int(np.count_nonzero(both.of_b)),
    )  # fmt: skip
    if both.tokens < LEAST_TOKENS:
        reason = f"{both.tokens} tokens are too few: {LEAST_TOKENS} are wanted"
        return (*row, None, None, None, 0, None, None, reason), _paths(pair, both)
    plug_in, chance = mutual_information_bits(both), chance_bits(a, b, pair.shuffles)
    entropy = entropy_bits(both.of_b)
    explained = 100.0 * (plug_in - chance) / entropy if entropy > 0 else None
    return (*row, plug_in - chance, plug_in, chance, pair.shuffles, entropy, explained, None), _paths(pair, both)


def _paths(pair: _Pair, both: Joint) -> pl.DataFrame | None:
    """The paths that add most to the mutual information, the strongest first; None where chance could make them."""
    likely = np.flatnonzero(both.counts >= LEAST_PATH_TOKENS)
    count, expert_a, expert_b = both.counts[likely], both.cells[likely] // both.width, both.cells[likely] % both.width
    of_a, of_b = both.of_a[expert_a], both.of_b[expert_b]
    lift = count * both.tokens / (of_a * of_b)
    p_value = chernoff(count, count / lift) * np.count_nonzero(both.of_a) * np.count_nonzero(both.of_b)
    real = np.flatnonzero((lift > 1) & (p_value <= MOST_P))
    if not len(real):
        return None
    strength = count[real] * np.log2(lift[real])
    best = real[np.argsort(-strength, kind="stable")][: ADJACENT_PATHS if pair.adjacent else OTHER_PATHS]
    low, high = wilson(count[best], of_a[best])
    return pl.DataFrame(
        {
            "layer_a": np.full(len(best), pair.a.layer),
            "expert_a": pair.a.names[expert_a[best]],
            "layer_b": np.full(len(best), pair.b.layer),
            "expert_b": pair.b.names[expert_b[best]],
            "adjacent": np.full(len(best), pair.adjacent),
            "tokens": np.full(len(best), both.tokens),
            "tokens_a": of_a[best],
            "tokens_b": of_b[best],
            "tokens_both": count[best],
            "probability": count[best] / of_a[best],
            "probability_low": low,
            "probability_high": high,
            "base_probability": of_b[best] / both.tokens,
            "lift": lift[best],
            "p_value": p_value[best],
        },
        schema=PATHS,
    )


def chernoff(hits: Ints, expected: Floats) -> Floats:
    """An upper bound of the chance of so many hits or more, where fewer are expected and tokens choose independently.

    Hits of tokens drawn without replacement are at most as spread as a Poisson variable's: Hoeffding (1963), J. Am.
    Stat. Assoc. 58, 13, theorems 1 and 4.
    """
    bound: Floats = np.exp(hits - expected - hits * np.log(hits / expected))
    return np.where(hits > expected, bound, 1.0)


def wilson(hits: Ints, tries: Ints) -> tuple[Floats, Floats]:
    """95 % confidence interval of a probability: Wilson (1927), J. Am. Stat. Assoc. 22, 209."""
    z2 = NORMAL_95 * NORMAL_95
    share, middle = hits / tries, (hits + z2 / 2) / (tries + z2)
    half = NORMAL_95 / (1 + z2 / tries) * np.sqrt(share * (1 - share) / tries + z2 / (4 * tries * tries))
    return middle - half, middle + half
