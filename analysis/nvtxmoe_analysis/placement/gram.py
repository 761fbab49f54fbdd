"""Sums of products by layer and block, from which the cost model is solved with any block left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.placement.blocks import Blocks
from nvtxmoe_analysis.placement.run_data import LayerData

#: A residual beyond so many scales (median absolute residual / 0.6745) counts as one of that size: Huber's clipping.
CLIP = 3.0
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Rows:
    """Rows of a layer and phase for the fit: a (step, rank) each.

    Attributes:
        features: float64 [rows, features].
        rank: int64 [rows], position among the ranks.
        own_tokens: float64 [rows], that the rank scheduled itself.
        own_ns: float64 [rows].
        level: int64 [rows], numbers of levels: rows of one level share an intercept.
        block: int64 [rows].
        weight: float64 [rows]: the same for all rows of a level.
    """

    features: Floats
    rank: Ints
    own_tokens: Floats
    own_ns: Floats
    level: Ints
    block: Ints
    weight: Floats

    def centred(self, values: Floats) -> Floats:
        """Return values less their level's mean: [rows, columns]."""
        many = np.bincount(self.level).astype(np.float64)
        means = np.stack([np.bincount(self.level, weights=column) for column in values.T], axis=1) / many[:, None]
        result: Floats = values - means[self.level]
        return result

    def level_means(self, values: Floats) -> Floats:
        """Return the level's mean of each row: [rows]."""
        means: Floats = (np.bincount(self.level, weights=values) / np.bincount(self.level))[self.level]
        return means


def rows_of(data: LayerData, blocks: Blocks, chosen: Bools, features: Floats) -> Rows:
    """Return the rows of some steps.

    A level is a block, a way of launch, a size of tiles and a number of tokens: what these change is no cost of the
    experts, and neither is a clock that drifts over blocks.

    Parameters:
        chosen: bool [steps of data]. features: float64 [steps of data, ranks, features].
    """
    steps, ranks = int(chosen.sum()), len(data.ranks)
    block = np.repeat(blocks.of(data.steps[chosen]), ranks)
    tokens = np.repeat(data.tokens[chosen], ranks)
    block_m = np.repeat(data.block_m[chosen], ranks)
    launched = data.launched[chosen].ravel()
    keys = np.stack([block, launched, block_m, tokens], axis=1)
    level = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    own_ns = data.own_ns[chosen].ravel()
    typical = np.bincount(level, weights=own_ns) / np.bincount(level)
    # The scatter of a time grows with it: its variance about in proportion.
    weight = np.median(own_ns) / np.maximum(typical, 1.0)[level] if steps else np.zeros(0)
    return Rows(
        features[chosen].reshape(steps * ranks, features.shape[-1]),
        np.tile(np.arange(ranks, dtype=np.int64), steps),
        data.own_tokens[chosen].ravel().astype(np.float64),
        own_ns,
        level,
        block,
        weight,
    )


def products(
    rows: Sequence[Rows], speed: Floats, slopes: Floats, others: Floats, blocks: int, *, with_tokens: bool, clip: float
) -> tuple[Floats, float]:
    """Return the sums of products and the scale of residuals.

    The columns are the features, the speeds' (a rank's fitted time, less the last rank's), the rank's own tokens where
    they are asked for, and the time over the rank's speed. All are less their level's mean.

    Parameters:
        rows: of each layer. speed: float64 [ranks]. slopes: float64 [layers, features], the last fit's.
        others: float64 [others], the last fit's coefficients of the columns after the features.
        clip: residuals beyond it (ns, weighted) are clipped; infinity for none.

    Returns:
        float64 [blocks, layers, columns, columns], and the scale in ns.
    """
    wide = rows[0].features.shape[1] + len(speed) - 1 + int(with_tokens) + 1
    sums = np.zeros((blocks, len(rows), wide, wide))
    residuals = []
    for at, layer in enumerate(rows):
        if not len(layer.own_ns):
            continue
        time = layer.own_ns / speed[layer.rank]
        explained = layer.centred((layer.features @ slopes[at])[:, None])[:, 0]
        fitted = layer.level_means(time) + explained
        speeds = fitted[:, None] * (
            (layer.rank[:, None] == np.arange(len(speed) - 1)).astype(np.float64)
            - (layer.rank[:, None] == len(speed) - 1)
        )
        more = [layer.own_tokens[:, None]] if with_tokens else []
        columns = layer.centred(np.concatenate([layer.features, speeds, *more, time[:, None]], axis=1))
        root = np.sqrt(layer.weight)
        predicted = (
            columns[:, : layer.features.shape[1]] @ slopes[at] + columns[:, layer.features.shape[1] : -1] @ others
        )
        residual = (columns[:, -1] - predicted) * root
        residuals.append(np.abs(residual))
        columns *= root[:, None]
        columns[:, -1] = predicted * root + np.clip(residual, -clip, clip)
        order = np.argsort(layer.block, kind="stable")
        edges = np.searchsorted(layer.block[order], np.arange(blocks + 1))
        for block in range(blocks):
            part = columns[order[edges[block] : edges[block + 1]]]
            sums[block, at] = part.T @ part
    scale = MAD_TO_SIGMA * float(np.median(np.concatenate(residuals))) if residuals else 0.0
    return sums, scale
