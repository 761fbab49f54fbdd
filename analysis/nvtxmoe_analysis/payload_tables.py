"""Counts, sampled tokens and pair counts as columns and matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe import schema
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.words import WORD_BYTES

Groups = list[tuple[pl.DataFrame, npt.NDArray[Any]]]

#: Counts are held in so many bytes at most.
MOST_COUNT_BYTES = 4
#: A token chooses fewer experts: an expert's number has 16 bits.
MOST_TOP_K = 1 << 16
COUNT_FIELDS = ("step", "layer", "rank", "num_tokens", "top_k")
TOPK_FIELDS = ("step", "layer", "token")
PAIR_FIELDS = ("first_step", "last_step", "layer", "rank", "num_tokens")


@dataclass(frozen=True)
class CountTable:
    """One row a ``moe.counts`` (or ``moe.physical``) event.

    Attributes:
        cells: ``row``, ``pid``, ``start`` (ns), ``step``, ``layer``, ``rank``, ``num_tokens``, ``top_k``,
            ``num_experts`` (Int64).
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


def count_table(event: str, groups: Groups, words: pl.DataFrame, experts: Mapping[tuple[int, int], int]) -> CountTable:
    """Decode ``moe.counts`` or ``moe.physical`` from both forms.

    Parameters:
        groups: decoded binary payloads with their rows.
        words: word-form payloads: ``row``, ``pid``, ``start``, ``blob``.
        experts: number of experts by (pid, layer); settles the odd last count of a padded word.
    """
    frames = [_frame(("row", "pid", "start", *COUNT_FIELDS, "num_experts"))]
    matrices: list[npt.NDArray[np.unsignedinteger[Any]]] = []
    for rows, array in [*groups, *_word_counts(words, experts)]:
        require(array, COUNT_FIELDS, ("counts",), event)
        counts = array["counts"]
        if counts.dtype.kind != "u" or counts.dtype.itemsize > MOST_COUNT_BYTES:
            counts = counts.astype(np.uint32)
        if counts.ndim != 2 or not counts.shape[1]:
            raise NvtxmoeError(f"the payload of {event} has counts of shape {counts.shape[1:]}, not one row")
        frames.append(
            pl.DataFrame(
                {
                    **{c: rows[c] for c in ("row", "pid", "start")},
                    **{f: array[f].astype(np.int64) for f in COUNT_FIELDS},
                    "num_experts": np.full(len(array), counts.shape[1], dtype=np.int64),
                }
            )
        )
        matrices.append(counts)
    return CountTable(pl.concat(frames), stack(matrices, 0, np.result_type(np.uint8, *map(narrowest, matrices))))


def narrowest(counts: npt.NDArray[Any]) -> np.dtype[Any]:
    """The smallest unsigned type that holds all of these counts (not negative)."""
    return np.min_scalar_type(counts.max(initial=0))


def _word_counts(words: pl.DataFrame, experts: Mapping[tuple[int, int], int]) -> Groups:
    head = schema.counts_dtype(0)
    groups: Groups = []
    for (size_bytes,), rows in words.with_columns(n=pl.col("blob").bin.size()).group_by("n", maintain_order=True):
        stacked = _bytes(rows, int(str(size_bytes)))
        if stacked.shape[1] < head.itemsize:
            raise NvtxmoeError(f"damaged payload: moe.w.counts of {stacked.shape[1]} bytes")
        fields = stacked[:, : head.itemsize].copy().view(head)[:, 0]
        room = (stacked.shape[1] - head.itemsize) // 4
        known = [
            experts.get((pid, int(layer)), room)
            for pid, layer in zip(rows["pid"].to_list(), fields["layer"], strict=True)
        ]
        # One word holds two counts: an odd number of experts leaves one to spare.
        real = np.array([k if k in (room, room - 1) else room for k in known])
        for number in np.unique(real):
            mine = real == number
            dtype = schema.counts_dtype(int(number))
            array = stacked[mine][:, : dtype.itemsize].copy().view(dtype)[:, 0]
            groups.append((rows.filter(pl.Series(mine)), array))
    return groups


def topk_table(
    groups: Groups, words: pl.DataFrame, top_k: Mapping[tuple[int, int], int], *, padded: bool = True
) -> TopkTable:
    """Decode ``moe.topk`` from both forms.

    Parameters:
        top_k: by (pid, layer), needed for words only.
        padded: whether bytes of words may be left over.
    """
    runs = [_frame(("pid", "step", "layer", "top_k", "first", "tokens"))]
    token: list[npt.NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    experts: list[npt.NDArray[np.int32]] = []
    weights: list[npt.NDArray[np.float32]] = []
    begin = 0
    for rows, stacked in [*groups, *_word_topk(words, top_k, padded)]:
        array = stacked.reshape(-1)
        require(array, TOPK_FIELDS, ("experts", "weights"), schema.TOPK)
        ids = _matrix(array, "experts").astype(np.int32)
        event = np.repeat(np.arange(len(rows)), stacked.shape[1] if stacked.ndim > 1 else 1)
        first = _run_starts(event, array["step"], array["layer"])
        runs.append(
            pl.DataFrame(
                {
                    "pid": rows["pid"].gather(event[first]),
                    "step": array["step"][first].astype(np.int64),
                    "layer": array["layer"][first].astype(np.int64),
                    "top_k": np.full(len(first), ids.shape[1], dtype=np.int64),
                    "first": first + begin,
                    "tokens": np.diff(np.append(first, len(array))),
                }
            )
        )
        begin += len(array)
        token.append(array["token"].astype(np.int32))
        experts.append(ids)
        weights.append(_matrix(array, "weights").astype(np.float32))
    return TopkTable(
        pl.concat(runs),
        np.concatenate(token),
        stack(experts, -1, np.dtype(np.int32)),
        stack(weights, np.nan, np.dtype(np.float32)),
    )


def _run_starts(*keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Positions at which any of the keys differs from the row before."""
    if len(keys[0]) == 0:
        return np.zeros(0, dtype=np.int64)
    fresh = np.zeros(len(keys[0]), dtype=np.bool_)
    fresh[0] = True
    for key in keys:
        fresh[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(fresh)


def _word_topk(words: pl.DataFrame, top_k: Mapping[tuple[int, int], int], padded: bool) -> Groups:
    groups: Groups = []
    for (size_bytes,), rows in words.with_columns(n=pl.col("blob").bin.size()).group_by("n", maintain_order=True):
        length = int(str(size_bytes))
        if length < schema.topk_dtype(0).itemsize:
            if length and not padded:
                raise NvtxmoeError(f"damaged payload: moe.topk of {length} bytes")
            continue  # a step without tokens
        joined = np.frombuffer(b"".join(rows["blob"].to_list()), np.uint8).reshape(len(rows), length)
        layers = joined[:, 8:12].copy().view("<i4")[:, 0].tolist()
        known = [top_k.get(key, 0) for key in zip(rows["pid"].to_list(), layers, strict=True)]
        strange = [at for at, k in enumerate(known) if not 1 <= k <= MOST_TOP_K]
        if strange:
            at = strange[0]
            raise NvtxmoeError(
                f"moe.w.topk of layer {layers[at]} can't be read: neither moe.meta nor moe.counts tells its top_k",
                where=f"process {rows['pid'][at]}",
            )
        for k in sorted(set(known)):
            mine = np.flatnonzero(np.array(known) == k)
            dtype = schema.topk_dtype(k)
            elements, rest = divmod(length, dtype.itemsize)
            if rest and not padded:
                raise NvtxmoeError(f"damaged payload: moe.topk of {length} bytes, of top-{k}")
            array = joined[mine, : elements * dtype.itemsize].reshape(-1).view(dtype).reshape(len(mine), elements)
            groups.append((rows[mine], array))
    return groups


def pair_table(groups: Groups, words: pl.DataFrame, experts: Mapping[tuple[int, int], int]) -> PairTable:
    """Decode ``moe.pairs`` from both forms."""
    frames = [_frame(("pid", *PAIR_FIELDS, "num_experts"))]
    pairs: list[npt.NDArray[np.uint32]] = []
    for rows, array in [*groups, *_word_pairs(words, experts)]:
        require(array, PAIR_FIELDS, ("pairs",), schema.PAIRS)
        matrix = _matrix(array, "pairs").astype(np.uint32)
        number = experts_of_pairs(matrix.shape[1])
        frames.append(
            pl.DataFrame(
                {
                    "pid": rows["pid"],
                    **{f: array[f].astype(np.int64) for f in PAIR_FIELDS},
                    "num_experts": np.full(len(array), number, dtype=np.int64),
                }
            )
        )
        pairs.extend(matrix)
    return PairTable(pl.concat(frames), pairs)


def _word_pairs(words: pl.DataFrame, experts: Mapping[tuple[int, int], int]) -> Groups:
    groups: Groups = []
    head = schema.pairs_dtype(0)
    for index, (pid, blob) in enumerate(zip(words["pid"].to_list(), words["blob"].to_list(), strict=True)):
        layer = int(np.frombuffer(blob, head, 1)["layer"][0])
        room = (len(blob) - head.itemsize) // 4
        known = experts.get((pid, layer))
        number = known if known is not None else _largest_fitting(room)
        if schema.pairs_length(number) > room:
            raise NvtxmoeError(
                f"damaged payload: moe.w.pairs of layer {layer} holds {room} pairs of {number} experts",
                where=f"process {pid}",
            )
        groups.append((words[index : index + 1], np.frombuffer(blob, schema.pairs_dtype(number), 1)))
    return groups


def experts_of_pairs(length: int) -> int:
    """The E of a triangle of E(E-1)/2 pairs.

    Raises:
        NvtxmoeError: no E has that many pairs.
    """
    number = _largest_fitting(length)
    if schema.pairs_length(number) != length:
        raise NvtxmoeError(f"damaged payload: moe.pairs of {length} entries, which is no E(E-1)/2")
    return number


def _largest_fitting(length: int) -> int:
    return int((1 + (1 + 8 * length) ** 0.5) / 2)


def require(array: npt.NDArray[Any], numbers: tuple[str, ...], lists: tuple[str, ...], event: str) -> None:
    """Raise NvtxmoeError when a decoded payload is not what its event must be.

    Parameters:
        array: one struct a payload.
        numbers: names of fields that must be one integer each.
        lists: names of fields that are numbers, one or several.
    """
    dtype = array.dtype
    missing = [f for f in (*numbers, *lists) if f not in (dtype.names or ())]
    if missing:
        found = ", ".join(dtype.names) if dtype.names else str(dtype)
        raise NvtxmoeError(f"the payload of {event} lacks {', '.join(missing)} (it has {found})")
    wrong = [f for f in numbers if dtype[f].kind not in "iu"]
    wrong += [f for f in lists if dtype[f].base.kind not in ("f" if f == "weights" else "iu")]
    if wrong:
        raise NvtxmoeError(f"the payload of {event} has {wrong[0]} of type {dtype[wrong[0]]}")
    if array.ndim != 1:
        raise NvtxmoeError(f"the payload of {event} is an array, not one struct")


def _frame(columns: tuple[str, ...]) -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.Int64))


def _matrix(array: npt.NDArray[Any], field: str) -> npt.NDArray[Any]:
    """A field as one row an element, also where there are no elements, or nothing in them."""
    return array[field].reshape(len(array), math.prod(array.dtype[field].shape))


def _bytes(rows: pl.DataFrame, size_bytes: int) -> npt.NDArray[np.uint8]:
    joined = b"".join(rows["blob"].to_list())
    return np.frombuffer(joined, np.uint8).reshape(len(rows), -(-size_bytes // WORD_BYTES) * WORD_BYTES)


def stack(parts: Sequence[npt.NDArray[Any]], fill: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Stack matrices of unequal widths, filled on the right; a single one of that type as it is."""
    if len(parts) == 1 and parts[0].dtype == dtype and parts[0].flags.c_contiguous:
        return parts[0]
    width = max((p.shape[1] for p in parts), default=0)
    shape = sum(len(p) for p in parts), width
    out = np.empty(shape, dtype) if all(p.shape[1] == width for p in parts) else np.full(shape, fill, dtype)
    at = 0
    for part in parts:
        out[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return out
