"""Rewrites the payloads of our NVTX events for another rank and another tile.

Counts are drawn anew for every tile from a skewed multinomial, no expert above the number of tokens. Where a
step has sampled top-k ids, its counts and those ids are permuted alike, so that they go on agreeing.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nvtxmoe.formats import schema
from scripts.bench.brute_capture import HEADER_BYTES

Structs = NDArray[Any]
#: Exponent of the experts' popularity: share of the i-th most popular is proportional to i ** -SKEW.
SKEW = 0.8


def rewrite_meta(blob: bytes, rank: int, world_size: int) -> bytes:
    """``moe.meta`` of one data-parallel rank; the payload is a u8 array, its length stands in front."""
    version, schema_id, _, offset, length = struct.unpack("<5Q", blob[: HEADER_BYTES + 8])
    body = json.loads(blob[HEADER_BYTES + 8 : HEADER_BYTES + 8 + length])
    body |= {"rank": rank, "world_size": world_size, "tp_rank": 0, "tp_size": 1}
    body |= {"dp_rank": rank, "dp_size": world_size}
    body["sample_every"] = 0  # only some tiles keep their sampled tokens
    text = json.dumps(body).encode()
    return struct.pack("<5Q", version, schema_id, len(text) + 8, offset, len(text)) + text


def bodies(blobs: list[bytes], dtype: np.dtype[np.void]) -> Structs:
    """Payloads of one event as an array, a row each."""
    rows: Structs = np.frombuffer(b"".join(blob[HEADER_BYTES:] for blob in blobs), dtype=dtype).copy()
    return rows


def cap_counts(drawn: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move what exceeds one assignment a token to the next experts with room; columns most popular first."""
    capped = np.minimum(drawn, num_tokens[:, None])
    excess = (drawn - capped).sum(axis=1, keepdims=True)
    room = num_tokens[:, None] - capped
    room_before = np.cumsum(room, axis=1) - room
    filled: NDArray[np.int64] = capped + np.clip(excess - room_before, 0, room)
    return filled


class Payloads:
    """The blobs of one round: a tile of every process, rows in the order of the NVTX table."""

    def __init__(self, rows: pl.DataFrame, rng: np.random.Generator) -> None:
        """Take rows with name, rank (of the process) and binaryData."""
        self._rng = rng
        self._blobs: list[bytes | None] = rows["binaryData"].to_list()
        self._rank = rows["rank"].to_numpy()
        names = rows["name"].to_list()
        self._at = {
            name: [i for i, (n, blob) in enumerate(zip(names, self._blobs, strict=True)) if n == name and blob]
            for name in (schema.STEP, schema.COUNTS, schema.TOPK)
        }
        self._steps = bodies(self._source(schema.STEP), schema.STEP_DTYPE)
        counts = self._source(schema.COUNTS)
        num_experts = (len(counts[0]) - HEADER_BYTES - schema.counts_dtype(0).itemsize) // 4
        self._counts = bodies(counts, schema.counts_dtype(num_experts))
        self.num_experts = num_experts
        self.layers: list[int] = sorted({int(layer) for layer in self._counts["layer"]})
        self.steps_per_tile = int(self._steps["step"].max() - self._steps["step"].min()) + 1
        self.topk_elements = 0
        #: Activations of everything rewritten so far: a row a layer, a column an expert.
        self.activations = np.zeros((len(self.layers), num_experts), dtype=np.int64)
        self._popularity()
        self._sampled_cells()

    def _source(self, name: str) -> list[bytes]:
        return [blob for i in self._at[name] if (blob := self._blobs[i]) is not None]

    def _popularity(self) -> None:
        """Order the experts of every layer by popularity, and share out the assignments."""
        shape = (len(self.layers), self.num_experts)
        self._order = self._rng.permuted(np.broadcast_to(np.arange(self.num_experts), shape), axis=1)
        share = np.arange(1, self.num_experts + 1, dtype=np.float64) ** -SKEW
        self._share = share / share.sum()
        self._layer_row = np.searchsorted(self.layers, self._counts["layer"])

    def _sampled_cells(self) -> None:
        """Pair every moe.topk payload with its moe.counts row and check that they agree."""
        keys = zip(self._counts_ranks(), self._counts["step"], self._counts["layer"], strict=True)
        cell_of = {(int(r), int(s), int(y)): index for index, (r, s, y) in enumerate(keys)}
        self._topk: list[Structs] = []
        self._topk_cell: list[int] = []
        for at, blob in zip(self._at[schema.TOPK], self._source(schema.TOPK), strict=True):
            (elements,) = struct.unpack_from("<Q", blob, HEADER_BYTES)
            body = blob[HEADER_BYTES + 8 :]
            top_k = (len(body) // elements - schema.topk_dtype(0).itemsize) // 6
            self._topk.append(np.frombuffer(body, dtype=schema.topk_dtype(top_k)).copy())
            row = self._topk[-1][0]
            cell = cell_of[int(self._rank[at]), int(row["step"]), int(row["layer"])]
            seen = np.bincount(self._topk[-1]["experts"].ravel(), minlength=self.num_experts)
            if not np.array_equal(seen, self._counts["counts"][cell]):
                raise ValueError(f"moe.topk of step {row['step']}, layer {row['layer']} is not its moe.counts")
            self._topk_cell.append(cell)
            self.topk_elements += int(elements)

    def _counts_ranks(self) -> NDArray[np.int64]:
        return self._rank[self._at[schema.COUNTS]]

    def rewrite(self, tile: int) -> list[bytes | None]:
        """Blobs of the tile with that number: steps run on, ranks are the processes', counts are new."""
        first_step = tile * self.steps_per_tile
        blobs = list(self._blobs)
        steps = self._steps.copy()
        steps["step"] += first_step
        steps["rank"] = self._rank[self._at[schema.STEP]]
        counts = self._counts.copy()
        counts["step"] += first_step
        counts["rank"] = self._counts_ranks()
        counts["counts"] = self._drawn()
        for cell, at, source in zip(self._topk_cell, self._at[schema.TOPK], self._topk, strict=True):
            new_id = self._rng.permutation(self.num_experts)
            topk = source.copy()
            topk["step"] += first_step
            topk["experts"] = new_id[source["experts"]]
            counts["counts"][cell][new_id] = self._counts["counts"][cell]
            blobs[at] = (self._blobs[at] or b"")[: HEADER_BYTES + 8] + topk.tobytes()
        for name, rows in ((schema.STEP, steps), (schema.COUNTS, counts)):
            body, size = rows.tobytes(), rows.dtype.itemsize
            for index, at in enumerate(self._at[name]):
                header = (self._blobs[at] or b"")[:HEADER_BYTES]
                blobs[at] = header + body[index * size : (index + 1) * size]
        np.add.at(self.activations, self._layer_row, counts["counts"].astype(np.int64))
        return blobs

    def _drawn(self) -> NDArray[np.int64]:
        """Draw counts for every cell; they sum to num_tokens x top_k."""
        num_tokens = self._counts["num_tokens"].astype(np.int64)
        drawn = self._rng.multinomial(num_tokens * self._counts["top_k"], self._share)
        result = np.empty_like(drawn)
        np.put_along_axis(result, self._order[self._layer_row], cap_counts(drawn, num_tokens), axis=1)
        return result
