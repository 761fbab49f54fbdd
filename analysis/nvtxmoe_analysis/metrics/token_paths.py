"""Sampled tokens followed from layer to layer, and what their expert in one layer says of that in another.

A token is (rank, step, token): the ranks of one tensor-parallel group show the same token in every layer of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.events.tables import TopkTable

#: A square of all experts may be this many times larger than the choices counted in it, plus a constant: only damage
#: gives layers more experts than that.
DENSE_FACTOR = 16
DENSE_CONSTANT = 1 << 20
#: Pairs of choices counted at a time, or as many as the square has cells: little enough for a processor's cache.
BLOCK = 1 << 16
#: Shuffles that are kept for the next pair of layers.
MOST_SHUFFLES = 50
#: The step of SplitMix64.
STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class LayerTokens:
    """The sampled tokens of one layer.

    Attributes:
        tokens: [tokens] a number of each token, the same in all layers; rising.
        experts: int32 [tokens, top_k], positions in ``names``.
        names: ids of the experts that got any of these tokens, rising.
    """

    layer: int
    tokens: Ints
    experts: npt.NDArray[np.int32]
    names: Ints

    @property
    def top_k(self) -> int:
        """Experts that a token chooses."""
        return int(self.experts.shape[1])


def tokens_by_layer(topk: TopkTable) -> dict[int, LayerTokens]:
    """The sampled tokens of each layer, rising. Of a token that was sent twice the first counts; tokens with
    fewer experts than their layer's others, or one twice (a damaged capture), are left out."""
    keys = topk.runs.select("rank", "step")
    number_of = keys.unique(maintain_order=True).with_row_index("number")
    number = keys.join(number_of, on=["rank", "step"], nulls_equal=True, maintain_order="left")["number"]
    length = int(topk.token.max(initial=0)) - min(0, int(topk.token.min(initial=0))) + 1
    base = number.to_numpy().astype(np.int64) * length
    runs = topk.runs.select("layer", "top_k").with_row_index("run")
    by_layer: dict[int, LayerTokens] = {}
    for (layer,), layer_runs in sorted(runs.partition_by("layer", as_dict=True).items()):
        at = layer_runs["run"].to_numpy()
        part = topk.take(layer_runs["run"].cast(pl.Int64))
        every: Ints = np.repeat(base[at], part.runs["tokens"].to_numpy()) + part.token.astype(np.int64)
        tokens, chosen = every, part.experts[:, : max(layer_runs["top_k"].to_list())]
        if not (every[1:] > every[:-1]).all():
            tokens, first = np.unique(every, return_index=True)
            chosen = chosen[first]
        ordered = np.sort(chosen, axis=1)
        complete = (chosen >= 0).all(axis=1) & (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
        if not complete.all():
            tokens, chosen = tokens[complete], chosen[complete]
        seen = np.bincount(chosen.reshape(-1)) > 0
        place = (np.cumsum(seen) - 1).astype(np.int32)
        by_layer[int(layer)] = LayerTokens(int(layer), tokens, place[chosen], np.flatnonzero(seen))
    return by_layer


def common_rows(a: LayerTokens, b: LayerTokens) -> tuple[Ints, Ints]:
    """Positions in ``a`` and in ``b`` of the tokens that both have."""
    if np.array_equal(a.tokens, b.tokens):
        both = np.arange(len(a.tokens))
        return both, both
    _, in_a, in_b = np.intersect1d(a.tokens, b.tokens, assume_unique=True, return_indices=True)
    return in_a, in_b


def evenly(rows: int, count: int) -> Ints:
    """At most ``count`` positions among ``rows``, evenly spread; all where they are not more."""
    return np.arange(rows) if rows <= count else np.arange(count) * rows // count


@dataclass(frozen=True)
class Joint:
    """How often experts of two layers were chosen by one token.

    Attributes:
        tokens: sample size.
        cells: expert of the first layer x ``width`` + expert of the second, of pairs that occur; rising.
        counts: tokens that chose both, by cell.
        of_a, of_b: tokens that chose each expert of either layer.
    """

    tokens: int
    cells: Ints
    counts: Ints
    width: int
    of_a: Ints
    of_b: Ints


def joint(a: Ints, b: Ints) -> Joint:
    """Count the pairs of ``a`` and ``b``, [tokens, top_k] experts in the two layers of the same tokens."""
    of_a, of_b = np.bincount(a.reshape(-1)), np.bincount(b.reshape(-1))
    return _joint(_by_choice(a), _by_choice(b), of_a, of_b)


def _by_choice(experts: Ints) -> Ints:
    """[top_k, tokens]: long rows, which numpy adds and gathers fast."""
    return np.ascontiguousarray(experts.T)


def _joint(a: Ints, b: Ints, of_a: Ints, of_b: Ints) -> Joint:
    """The same of [top_k, tokens] experts."""
    tokens, width = a.shape[1], len(of_b)
    a, a_token, size = a * width, max(1, len(a) * len(b)), len(of_a) * width
    if size > DENSE_FACTOR * a_token * tokens + DENSE_CONSTANT:
        cells, counts = np.unique(a[:, None] + b, return_counts=True)
        return Joint(tokens, cells, counts, width, of_a, of_b)
    square = np.zeros(size, dtype=np.int64)
    step = max(1, max(BLOCK, size) // a_token)
    codes = np.empty((len(a), len(b), min(step, tokens)), dtype=np.int64)
    for at in range(0, tokens, step):
        part = slice(at, min(at + step, tokens))
        out = codes[:, :, : part.stop - at]
        np.add(a[:, None, part], b[None, :, part], out=out)
        square += np.bincount(out.reshape(-1), minlength=size)
    cells = np.flatnonzero(square > 0)  # of truth values it is several times as fast as of numbers
    return Joint(tokens, cells, square[cells], width, of_a, of_b)


def entropy_bits(counts: Ints) -> float:
    """Shannon entropy of a distribution given by counts."""
    total = int(counts.sum())
    real = counts[counts > 0]
    return float(np.log2(total) - (real * np.log2(real)).sum() / total) if total else 0.0


def mutual_information_bits(pairs: Joint) -> float:
    """Plug-in estimate of the mutual information of two random picks: of a token's experts in either layer one each,
    evenly and independently of each other."""
    return entropy_bits(pairs.of_a) + entropy_bits(pairs.of_b) - entropy_bits(pairs.counts)


def chance_bits(a: Ints, b: Ints, rounds: int) -> float:
    """Mean plug-in mutual information after the second layer's tokens were shuffled: what this sample shows without
    any connection. The experts of either layer keep their frequencies."""
    bits = 0.0
    of_a, of_b = np.bincount(a.reshape(-1)), np.bincount(b.reshape(-1))
    first, second = _by_choice(a), _by_choice(b)
    for at in range(1, rounds + 1):
        moved = second.take(shuffled(len(b), at), axis=1)
        bits += mutual_information_bits(_joint(first, moved, of_a, of_b))
    return bits / rounds


@lru_cache(maxsize=MOST_SHUFFLES)
def shuffled(rows: int, round_number: int) -> Ints:
    """A permutation of the positions, the same on every machine: by SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, rows + 1, dtype=np.uint64) + (np.uint64(round_number) << np.uint64(32))) * STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)))  # no two are equal
