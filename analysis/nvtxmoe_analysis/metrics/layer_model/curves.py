"""What a second feature must not be mistaken for: a curve in the first one, and the batch that a graph is padded to.

A CUDA graph is replayed at the next larger batch that was captured, so time rises in stairs with the tokens; a kernel
that reads weights once levels off. Such a curve is no straight line in the first feature, and whatever else moves
with the batch would pass for a cause of the rest.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats
from nvtxmoe_analysis.metrics.layer_model.samples import Sample

#: A curve bends at these quantiles of the feature's values.
KNOTS = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Batches of a graph have so many rows at least, and there are at most so many per row; neighbours are merged.
MIN_IN_BATCH, BATCHES_A_ROW = 4, 1 / 8
#: Up to so many tokens vLLM captures batches of 1, 2, 4 and multiples of 8, above it multiples of 16 (0.20 to 0.33,
#: config/vllm.py, cudagraph_capture_sizes); custom lists are as a rule among them.
DENSE_BATCHES = 256


def curve(sample: Sample, values: Floats) -> Floats:
    """Columns of a curve in a feature and of stairs in the step's tokens: [columns, rows].

    Parameters:
        values: of the feature, [rows].
    """
    knots = np.unique(np.quantile(np.unique(values), KNOTS))
    bends = [values, *(np.maximum(values - knot, 0.0) for knot in knots)]
    return np.array([*bends, *stairs(sample.tokens, sample.rows)])


def stairs(tokens: Floats | None, rows: int) -> list[Floats]:
    """Which rows ran at a padded batch, a column for each but one."""
    if tokens is None or np.isnan(tokens).any():
        return []
    padded = padded_batch(tokens)
    batches, size = np.unique(padded, return_counts=True)
    least = max(MIN_IN_BATCH, int(np.ceil(rows / max(1, int(rows * BATCHES_A_ROW)))))
    ends: list[float] = []
    gathered = 0
    for batch, count in zip(batches.tolist(), size.tolist(), strict=True):
        gathered += count
        if gathered >= least:
            ends.append(batch)
            gathered = 0
    step = np.searchsorted(np.array(ends), padded)
    columns: list[Floats] = [_column(step == number) for number in range(1, int(step.max(initial=0)) + 1)]
    return columns


def padded_batch(tokens: Floats) -> Floats:
    """The batch that vLLM's default graphs pad so many tokens to, [rows]."""
    small = np.array([1.0, 2.0, 4.0, 8.0])
    least = small[np.minimum(np.searchsorted(small, tokens), len(small) - 1)]
    wide = np.where(tokens <= DENSE_BATCHES, 8.0, 16.0)
    padded: Floats = np.where(tokens <= small[-1], least, np.ceil(tokens / wide) * wide)
    return padded


def _column(rows: Bools) -> Floats:
    return rows.astype(np.float64)
