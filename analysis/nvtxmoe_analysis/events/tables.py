"""Counts, sampled tokens and pair counts as columns and matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError

#: Counts are held in so many bytes at most.
MOST_COUNT_BYTES = 4
#: Bytes of stacked matrices of unequal widths: this, or so many times what they have themselves.
MOST_FILLED_BYTES, MOST_FILLED = 1 << 28, 16


@dataclass(frozen=True)
class CountTable:
    """One row per (step, layer) of ``moe.counts`` (or ``moe.physical``); an event may hold many layers.

    Attributes:
        cells: ``row`` and ``start`` (ns) of the event, ``pid``, ``step``, ``layer``, ``rank``, ``num_tokens``,
            ``top_k``, ``num_experts`` (Int64).
        matrix: [cells, most experts] of the smallest unsigned type that holds them all, of up to 32 bits; zero past a
            cell's own ``num_experts``.
    """

    cells: pl.DataFrame
    matrix: npt.NDArray[np.unsignedinteger[Any]]

    def __len__(self) -> int:
        return len(self.cells)

    def take(self, rows: pl.Series) -> CountTable:
        """The cells at these positions (integers)."""
        index = rows.to_numpy()
        if np.array_equal(index, np.arange(len(self))):  # nothing moves: a large table is not copied
            return self
        return CountTable(self.cells[index], self.matrix[index])

    def top_k_by_layer(self) -> dict[tuple[int, int], int]:
        """top_k of each (pid, layer)."""
        last = self.cells.unique(["pid", "layer"], keep="last")
        keys = zip(last["pid"].to_list(), last["layer"].to_list(), strict=True)
        return dict(zip(keys, last["top_k"].to_list(), strict=True))


@dataclass(frozen=True)
class TopkTable:
    """Tokens of sampled steps. A run is the tokens of one (step, layer) in one event.

    Attributes:
        runs: ``pid``, ``step``, ``layer``, ``top_k``, ``first`` (its first token's position), ``tokens`` (their
            number); in the order of the arrays, further columns may follow.
        token: int32 [tokens], index within the step.
        experts: int32 [tokens, largest top_k], -1 past a token's own top_k; in routing order.
        weights: float32 of the same shape, NaN past top_k.
    """

    runs: pl.DataFrame
    token: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.token)

    @property
    def tokens(self) -> pl.DataFrame:
        """One row a token: the columns of its run but the counts, and ``token`` (Int64)."""
        rows = self.runs.drop("first", "tokens")[self.run_of_token]
        return rows.with_columns(token=pl.Series(self.token.astype(np.int64)))

    @property
    def run_of_token(self) -> npt.NDArray[np.intp]:
        """Row of ``runs`` of every token."""
        return np.repeat(np.arange(len(self.runs)), self.runs["tokens"].to_numpy())

    def take(self, rows: pl.Series) -> TopkTable:
        """The runs at these positions (integers), in their order."""
        runs, index = token_rows(self.runs[rows.to_numpy()])
        if np.array_equal(index, np.arange(len(self))):
            return TopkTable(runs, self.token, self.experts, self.weights)
        return TopkTable(runs, self.token[index], self.experts[index], self.weights[index])


def token_rows(runs: pl.DataFrame) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """Runs that were taken out of others with ``first`` as it becomes, and where every token of theirs stood."""
    length = runs["tokens"].to_numpy()
    begin = np.concatenate([[0], np.cumsum(length)])
    index = np.repeat(runs["first"].to_numpy() - begin[:-1], length) + np.arange(begin[-1])
    return runs.with_columns(first=pl.Series(begin[:-1], dtype=pl.Int64)), index


@dataclass(frozen=True)
class PairTable:
    """One row a ``moe.pairs`` event.

    Attributes:
        spans: ``pid``, ``first_step``, ``last_step``, ``layer``, ``rank``, ``num_tokens``, ``num_experts``.
        pairs: one uint32 array a span, the upper triangle by rows.
    """

    spans: pl.DataFrame
    pairs: list[npt.NDArray[np.uint32]]

    def __len__(self) -> int:
        return len(self.spans)


def narrowest(counts: npt.NDArray[Any]) -> np.dtype[Any]:
    """The smallest unsigned type that holds all of these counts (not negative)."""
    return np.min_scalar_type(counts.max(initial=0))


def _frame(columns: tuple[str, ...]) -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.Int64))


def stack(parts: Sequence[npt.NDArray[Any]], fill: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Stack matrices of unequal widths, filled on the right; a single one of that type as it is.

    Raises:
        NvtxmoeError: most of it would be filled: one payload is far wider than the others.
    """
    if len(parts) == 1 and parts[0].dtype == dtype and parts[0].flags.c_contiguous:
        return parts[0]
    width = max((p.shape[1] for p in parts), default=0)
    shape = sum(len(p) for p in parts), width
    filled_bytes = math.prod(shape) * dtype.itemsize
    if filled_bytes > max(MOST_FILLED_BYTES, MOST_FILLED * sum(p.size for p in parts) * dtype.itemsize):
        raise NvtxmoeError(f"damaged payload: one has {width:,} experts, far more than the other {shape[0]:,}")
    out = np.empty(shape, dtype) if all(p.shape[1] == width for p in parts) else np.full(shape, fill, dtype)
    at = 0
    for part in parts:
        out[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return out
