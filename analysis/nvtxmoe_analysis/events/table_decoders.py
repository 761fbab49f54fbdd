"""Decode counts, sampled tokens and pair counts, in both forms, into tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe.formats.word_payloads import WORD_BYTES
from nvtxmoe_analysis.events.tables import MOST_COUNT_BYTES, CountTable, PairTable, TopkTable, _frame, narrowest, stack
from nvtxmoe_analysis.readers import nsys_tables

Groups = list[tuple[pl.DataFrame, npt.NDArray[Any]]]


#: An expert's number has 16 bits, and a token chooses fewer.
MOST_EXPERTS = MOST_TOP_K = 1 << 16


COUNT_FIELDS = ("step", "layer", "rank", "num_tokens", "top_k")


TOPK_FIELDS = ("step", "layer", "token")


PAIR_FIELDS = ("first_step", "last_step", "layer", "rank", "num_tokens")


def count_table(event: str, groups: Groups, words: pl.DataFrame, experts: Mapping[tuple[int, int], int]) -> CountTable:
    """Decode ``moe.counts`` or ``moe.physical`` from binary payloads and words.

    A binary payload is one struct, or an array of structs: the layers of a step. Each struct becomes a row, in the
    order of the payloads; the rows of one payload have its ``row`` and ``start``.

    Parameters:
        groups: decoded binary payloads with their rows: [payloads] or [payloads, layers].
        words: word-form payloads: ``row``, ``pid``, ``start``, ``blob``.
        experts: number of experts by (pid, layer); settles the odd last count of a padded word.
    """
    frames = [_frame(("row", "pid", "start", *COUNT_FIELDS, "num_experts"))]
    matrices: list[npt.NDArray[np.unsignedinteger[Any]]] = []
    binary = [_one_row_per_struct(rows, array) for rows, array in groups]
    for rows, array in [*binary, *_word_counts(words, experts)]:
        require(array, COUNT_FIELDS, ("counts",), event)
        counts = array["counts"]
        if counts.dtype.kind != "u" or counts.dtype.itemsize > MOST_COUNT_BYTES:
            counts = counts.astype(np.uint32)
        if counts.ndim != 2 or not counts.shape[1]:
            raise NvtxmoeError(f"the payload of {event} has counts of shape {counts.shape[1:]}, not one row")
        if counts.shape[1] > MOST_EXPERTS:
            raise NvtxmoeError(f"damaged payload: {event} of {counts.shape[1]:,} experts")
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


def _one_row_per_struct(rows: pl.DataFrame, array: npt.NDArray[Any]) -> tuple[pl.DataFrame, npt.NDArray[Any]]:
    """Flatten payloads that are arrays of structs, and repeat their rows accordingly.

    Parameters:
        rows: one row per payload.
        array: [payloads], or [payloads, structs] of any dtype.

    Returns:
        Both with one entry per struct. Payloads of plain numbers are returned as they are, for ``require`` to refuse.
    """
    if array.ndim != 2 or array.dtype.names is None:
        return rows, array
    return rows[np.repeat(np.arange(len(rows)), array.shape[1])], array.reshape(-1)


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
            of_dtype = real == number
            dtype = schema.counts_dtype(int(number))
            array = stacked[of_dtype][:, : dtype.itemsize].copy().view(dtype)[:, 0]
            groups.append((rows.filter(pl.Series(of_dtype)), array))
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
                where=f"process {rows['pid'][at] & nsys_tables.PID_MASK}",
            )
        for k in sorted(set(known)):
            of_k = np.flatnonzero(np.array(known) == k)
            dtype = schema.topk_dtype(k)
            elements, remainder = divmod(length, dtype.itemsize)
            if remainder and not padded:
                raise NvtxmoeError(f"damaged payload: moe.topk of {length} bytes, of top-{k}")
            array = joined[of_k, : elements * dtype.itemsize].reshape(-1).view(dtype).reshape(len(of_k), elements)
            groups.append((rows[of_k], array))
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
                where=f"process {pid & nsys_tables.PID_MASK}",
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
        fields = ", ".join(dtype.names) if dtype.names else str(dtype)
        raise NvtxmoeError(f"the payload of {event} lacks {', '.join(missing)} (it has {fields})")
    wrong = [f for f in numbers if dtype[f].kind not in "iu"]
    wrong += [f for f in lists if dtype[f].base.kind not in ("f" if f == "weights" else "iu")]
    if wrong:
        raise NvtxmoeError(f"the payload of {event} has {wrong[0]} of type {dtype[wrong[0]]}")
    if array.ndim != 1:
        raise NvtxmoeError(f"the payload of {event} is an array, not one struct")


def _matrix(array: npt.NDArray[Any], field: str) -> npt.NDArray[Any]:
    """A field as one row an element, also where there are no elements, or nothing in them."""
    return array[field].reshape(len(array), math.prod(array.dtype[field].shape))


def _bytes(rows: pl.DataFrame, size_bytes: int) -> npt.NDArray[np.uint8]:
    joined = b"".join(rows["blob"].to_list())
    return np.frombuffer(joined, np.uint8).reshape(len(rows), -(-size_bytes // WORD_BYTES) * WORD_BYTES)
