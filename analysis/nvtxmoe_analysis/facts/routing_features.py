"""How unevenly the tokens of each (step, layer) fall on the experts: entropy and Gini coefficient."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.core.parallel import CHUNK, ordered_map
from nvtxmoe_analysis.events.tables import CountTable

Counts = npt.NDArray[np.unsignedinteger[Any]]

#: Counts up to here have their logarithms in a table.
MOST_TABLED = 1 << 16


def unevenness(counts: CountTable) -> pl.DataFrame:
    """``entropy_bits`` and ``gini`` of each cell, in the order of ``counts.cells``; null without assignments.

    With n experts, counts c_i and T = sum c_i:

    - entropy (C. E. Shannon, A Mathematical Theory of Communication, 1948), of the shares c_i / T:
      H = -sum (c_i / T) log2 (c_i / T), from 0 (one expert gets all) to log2 n (all get the same);
    - Gini coefficient, half the relative mean absolute difference: G = sum_i sum_j |c_i - c_j| / (2 n T), with the
      counts sorted G = sum_i (2 i - n - 1) c_i / (n T), from 0 (all get the same) to 1 - 1/n (one expert gets all).
    """
    number = counts.cells["num_experts"].to_numpy()
    logs = _logs(counts.matrix)

    def chunk(first: int) -> tuple[Floats, Floats]:
        block = counts.matrix[first : first + CHUNK]
        return _entropy(block, logs), _gini(block, number[first : first + CHUNK])

    parts = list(ordered_map(chunk, range(0, len(counts), CHUNK)))
    nothing = [np.zeros(0)]
    frame = pl.DataFrame(
        {
            "entropy_bits": np.concatenate(nothing + [entropy for entropy, _ in parts]),
            "gini": np.concatenate(nothing + [gini for _, gini in parts]),
        }
    )
    return frame.fill_nan(None)


def _logs(matrix: Counts) -> Floats | None:
    """c log2 c of every count up to the largest; None where that would be a large table."""
    largest = int(matrix.max(initial=0))
    if largest > MOST_TABLED:
        return None
    return _times_log(np.arange(largest + 1))


def _times_log(counts: npt.NDArray[Any]) -> Floats:
    out: Floats = counts.astype(np.float64)
    out *= np.log2(np.maximum(out, 1.0))
    return out


def _entropy(block: Counts, logs: Floats | None) -> Floats:
    """H = log2 T - (sum c_i log2 c_i) / T; NaN where T is 0."""
    total = block.sum(axis=1, dtype=np.int64).astype(np.float64)
    inner = (logs[block] if logs is not None else _times_log(block)).sum(axis=1)
    bits: Floats
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.maximum(np.log2(total) - inner / total, 0.0)
    bits[block.max(axis=1, initial=0) == total] = 0.0  # one expert got all; rounding would leave a speck
    bits[total == 0] = np.nan
    return bits


def _gini(block: Counts, number: npt.NDArray[np.int64]) -> Floats:
    """NaN where there are no assignments. Columns past a cell's own experts are 0, and so come first when sorted."""
    width = block.shape[1]
    # numpy sorts bytes by radix, wider integers by vector instructions.
    ordered = np.sort(block, axis=1, kind="stable" if block.dtype.itemsize == 1 else None)
    values = ordered.astype(np.float64)
    # Sums of integers below 2^53 are exact in doubles.
    place = values @ np.arange(1, width + 1, dtype=np.float64)
    total = values.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gini: Floats = (2.0 * (place - (width - number) * total) - (number + 1) * total) / (number * total)
    return gini


def cell_features(counts: CountTable) -> pl.DataFrame:
    """What the counts of each cell say, one row a cell, in the order of ``counts.cells``.

    Columns: ``total`` (assignments), ``active_experts`` (experts that got any), ``max_count``, ``min_count``,
    ``mean_count``, ``std_dev`` (population, over all experts), ``max_min_ratio`` (null where an expert got
    nothing), ``max_mean_ratio`` (null without assignments).
    """
    number = counts.cells["num_experts"].to_numpy()
    total, squares, active, largest, least = (np.zeros(len(counts), dtype=np.int64) for _ in range(5))
    for at in range(0, len(counts), CHUNK):
        block = counts.matrix[at : at + CHUNK].astype(np.int64)
        rows = slice(at, at + len(block))
        total[rows] = block.sum(axis=1)
        squares[rows] = np.einsum("ij,ij->i", block, block)
        active[rows] = np.count_nonzero(block, axis=1)
        largest[rows] = block.max(axis=1, initial=0)
        padded = np.arange(block.shape[1]) >= number[rows, None]
        least[rows] = np.where(padded, np.iinfo(np.int64).max, block).min(axis=1, initial=np.iinfo(np.int64).max)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Integers up to the last division: E * sum of squares - square of the sum, over E squared.
        deviation = np.sqrt((number * squares - total * total).astype(np.float64)) / number
        frame = pl.DataFrame(
            {
                "total": total,
                "active_experts": active,
                "max_count": largest,
                "min_count": least,
                "mean_count": total / number,
                "std_dev": deviation,
                "max_min_ratio": largest / least,
                "max_mean_ratio": largest * number / total,
            }
        )
    return frame.with_columns(
        max_min_ratio=pl.when(pl.col("min_count") > 0).then("max_min_ratio"),
        max_mean_ratio=pl.when(pl.col("total") > 0).then("max_mean_ratio"),
    )
