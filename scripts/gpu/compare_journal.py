"""A journal of nvtxmoe's direct mode compared with an oracle: counts of every cell, experts of every token.

How a layer was recorded decides what must be equal (``recording`` of the layer in moe.meta):

- ``references``: experts in their order, weights bit for bit.
- ``sink``: experts as a set; weights are unknown (null) or equal.
- ``recomputed``: experts as a set, except for tokens whose k-th and (k+1)-th score are equal; weights to 1/128.

A layer that is recorded a second time, recomputed, has ``AGAIN`` added to its number: the second recording is compared
too, as a set, and may differ in as many tokens as moe.meta calls ambiguous.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scripts.gpu.oracle import Steps

REFERENCES, SINK, RECOMPUTED = "references", "sink", "recomputed"
#: Added to the number of a layer in its second recording.
AGAIN = 1000
#: Largest difference of a recomputed weight from vLLM's: a bf16's step.
WEIGHT_TOLERANCE = 1 / 128
COUNTS = (
    "steps", "cells", "cells_equal", "cells_excused", "tokens", "tokens_equal", "tokens_in_order", "tokens_tied",
    "tokens_excused", "weights", "weights_equal", "weights_close", "weights_unknown", "physical", "physical_equal",
    "mapped", "pairs", "pairs_equal", "other_layers_cells", "again_cells", "again_cells_equal", "again_tokens",
    "again_tokens_equal",
)  # fmt: skip


class Comparison:
    """The sums of a comparison, record by record.

    Parameters:
        oracle: what was routed.

    Attributes:
        found: sums by the names of ``COUNTS``.
        meta: the last moe.meta.
    """

    def __init__(self, oracle: Steps) -> None:
        self.oracle = oracle
        self.found = dict.fromkeys(COUNTS, 0)
        self.meta: dict[str, Any] = {}
        self._at = {layer: at for at, layer in enumerate(oracle.layers)}
        self._layers: dict[int, dict[str, Any]] = {}

    def recording(self, layer: int) -> str:
        """How moe.meta tells that a layer was recorded: in the layer, or for all layers, or by ranges of layers."""
        own = self._layers.get(layer, {}).get("recording")
        return str(own or recording_of(self.meta.get("recording"), layer) or REFERENCES)

    def take(self, event: str, payload: bytes) -> None:
        """Compare one record."""
        handler = getattr(self, f"_{event}", None)
        if handler is not None:
            handler(payload)

    def _meta(self, payload: bytes) -> None:
        self.meta = json.loads(payload)
        self._layers = {layer["layer"]: layer for layer in self.meta["layers"]}

    def _step(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        row = np.frombuffer(payload, schema.STEP_DTYPE)[0]
        step = int(row["step"])
        known = step < len(self.oracle.ids)
        self.found["steps"] += int(known and row["num_tokens"] == len(self.oracle.ids[step]))

    def _counts(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[8:12], "<i4")[0])
        if layer - AGAIN in self._at:
            self._counts_again(layer, payload)
            return
        if layer not in self._at:  # a draft's
            self.found["other_layers_cells"] += 1
            return
        experts = self._layers[layer]["num_experts"]
        row = np.frombuffer(payload, schema.counts_dtype(experts))[0]
        step, at = int(row["step"]), self._at[layer]
        wanted = np.bincount(self.oracle.ids[step][:, at].ravel(), minlength=experts)
        differing = int(np.abs(wanted - row["counts"].astype(np.int64)).sum())
        self.found["cells"] += 1
        self.found["cells_equal"] += int(differing == 0)
        self.found["cells_excused"] += int(0 < differing <= 2 * int(self._tied(step, at).sum()))

    def _counts_again(self, layer: int, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        experts = self._layers[layer]["num_experts"]
        row = np.frombuffer(payload, schema.counts_dtype(experts))[0]
        chosen = self.oracle.ids[int(row["step"])][:, self._at[layer - AGAIN]]
        self.found["again_cells"] += 1
        self.found["again_cells_equal"] += int(
            np.array_equal(np.bincount(chosen.ravel(), minlength=experts), row["counts"])
        )

    def _topk_again(self, layer: int, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        rows = np.frombuffer(payload, schema.topk_dtype(self._layers[layer]["top_k"]))
        wanted = self.oracle.ids[int(rows["step"][0])][:, self._at[layer - AGAIN]]
        self.found["again_tokens"] += len(rows)
        if rows["experts"].shape == wanted.shape:
            same = (np.sort(rows["experts"], axis=1) == np.sort(wanted, axis=1)).all(axis=1)
            self.found["again_tokens_equal"] += int(same.sum())

    def _tied(self, step: int, at: int) -> np.ndarray[Any, Any]:
        if self.oracle.ties:
            return self.oracle.ties[step][:, at]
        return np.zeros(len(self.oracle.ids[step]), dtype=bool)

    def _pairs(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[16:20], "<i4")[0])
        if layer not in self._at:
            return
        experts = self._layers[layer]["num_experts"]
        row = np.frombuffer(payload, schema.pairs_dtype(experts))[0]
        square = np.zeros((experts, experts), dtype=np.int64)
        for step in self.oracle.ids[int(row["first_step"]) : int(row["last_step"]) + 1]:
            chosen = step[:, self._at[layer]]
            for one, other in itertools.combinations(range(chosen.shape[1]), 2):
                np.add.at(square, (chosen[:, one], chosen[:, other]), 1)
        square += square.T
        self.found["pairs"] += 1
        self.found["pairs_equal"] += int(np.array_equal(square[np.triu_indices(experts, 1)], row["pairs"]))

    def _physical(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[8:12], "<i4")[0])
        if layer not in self._at or not self.oracle.physical:
            return
        slots = self._layers[layer]["num_physical_experts"]
        row = np.frombuffer(payload, schema.counts_dtype(slots))[0]
        step, at = int(row["step"]), self._at[layer]
        chosen = self.oracle.physical[step][:, at]
        self.found["physical"] += 1
        self.found["physical_equal"] += int(np.array_equal(np.bincount(chosen.ravel(), minlength=slots), row["counts"]))
        self.found["mapped"] += int((chosen != self.oracle.ids[step][:, at]).any())

    def _topk(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[8:12], "<i4")[0])
        if layer - AGAIN in self._at:
            self._topk_again(layer, payload)
            return
        if layer not in self._at:
            return
        rows = np.frombuffer(payload, schema.topk_dtype(self._layers[layer]["top_k"]))
        step, at = int(rows["step"][0]), self._at[layer]
        ids, wanted = rows["experts"].astype(np.int64), self.oracle.ids[step][:, at]
        if ids.shape != wanted.shape:
            self.found["tokens"] += len(ids)
            return
        in_order = (ids == wanted).all(axis=1)
        order, wanted_order = np.argsort(ids, axis=1), np.argsort(wanted, axis=1)
        by_set = (np.take_along_axis(ids, order, 1) == np.take_along_axis(wanted, wanted_order, 1)).all(axis=1)
        ordered = self.recording(layer) == REFERENCES
        equal = in_order if ordered else by_set
        tied = self._tied(step, at)
        found = self.found
        found["tokens"] += len(rows)
        found["tokens_equal"] += int(equal.sum())
        found["tokens_in_order"] += int(in_order.sum())
        found["tokens_tied"] += int(tied.sum())
        found["tokens_excused"] += int((~equal & tied).sum())
        if self.oracle.weights:
            mine, theirs = rows["weights"], self.oracle.weights[step][:, at].astype(np.float32)
            if not ordered:
                mine, theirs = np.take_along_axis(mine, order, 1), np.take_along_axis(theirs, wanted_order, 1)
            unknown = np.isnan(mine).all(axis=1)
            found["weights"] += int(equal.sum())
            found["weights_unknown"] += int((equal & unknown).sum())
            found["weights_equal"] += int((equal & (mine == theirs).all(axis=1)).sum())
            found["weights_close"] += int((equal & (np.abs(mine - theirs) <= WEIGHT_TOLERANCE).all(axis=1)).sum())


def recording_of(told: str | dict[str, str] | None, layer: int) -> str | None:
    """The way of a layer in the ``recording`` of moe.meta: one way, or ranges (``0-3,5``) by way; None without it."""
    if not isinstance(told, dict):
        return told
    for way, numbers in told.items():
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            if int(first) <= layer <= int(last or first):
                return way
    return None


def compare(journal: Path, oracle: Steps, *, eplb: bool = False) -> dict[str, Any]:
    """Compare a rank's journal with its oracle.

    Parameters:
        journal: of the process that the oracle was in.
        eplb: physical counts have to be there.

    Returns:
        The sums, what ran, how each layer was recorded, and ``exact``.
    """
    from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: PLC0415

    record = Journal(journal)
    comparison = Comparison(oracle)
    for part in record.bulk():
        for place in range(len(part)):
            comparison.take(EVENTS[int(part.event[place])], part.payloads(np.array([place])).tobytes())
    meta, found = comparison.meta, comparison.found
    ended = json.loads(record.ended) if record.ended else None
    hidden = {**((meta.get("capture") or {}).get("hidden_layers") or {})}
    hidden |= {**((ended or {}).get("hidden_layers") or {})}
    recordings: dict[str, list[int]] = {}
    for layer in oracle.layers:
        known = layer in comparison._layers and str(layer) not in hidden
        recordings.setdefault(comparison.recording(layer) if known else "hidden", []).append(layer)
    steps = len(oracle.ids) - oracle.idle
    report = {
        **found,
        "oracle_steps": steps,
        "oracle_cells": steps * len(oracle.layers),
        "oracle_tokens": sum(len(step) for step in oracle.ids) * len(oracle.layers),
        "ambiguous": sum((meta.get("ambiguous_tokens") or {}).values()),
        "idle": oracle.idle,
        "experts_used": experts_used(oracle),
        "replayed_steps": sum(number > 0 for number in oracle.replays),
        "replays": sum(oracle.replays),
        "moe_layers": oracle.layers,
        "recording": recordings,
        "hidden": hidden,
        "kernels": oracle.kernels,
        "runner": oracle.runner,
        "sources": {str(layer): source for layer, source in oracle.sources.items()},
        "held_bytes": meta.get("held_bytes"),
        "vllm": meta.get("vllm"),
        "device": meta.get("device"),
        "capture": meta.get("capture"),
        "ended": ended,
    }
    return {"exact": is_exact(report, eplb=eplb), **report}


def experts_used(oracle: Steps) -> int:
    """Fewest different experts that any layer chose in the whole run: few would make a comparison worthless."""
    if not oracle.layers or not any(len(step) for step in oracle.ids):
        return 0
    every = np.concatenate([step for step in oracle.ids if len(step)])
    return min(len(np.unique(every[:, at])) for at in range(len(oracle.layers)))


def is_exact(found: dict[str, Any], *, eplb: bool) -> bool:
    """Everything was recorded, and equals the oracle but for ties that may fall either way."""
    cells = found["oracle_cells"]
    recomputed = RECOMPUTED in found["recording"]
    weights = found["weights_unknown"] + (found["weights_close"] if recomputed else found["weights_equal"])
    return bool(
        cells
        and found["cells"] == found["cells_equal"] + found["cells_excused"] == cells
        and found["steps"] == found["oracle_steps"]
        and found["tokens"] == found["tokens_equal"] + found["tokens_excused"] == found["oracle_tokens"]
        and found["weights"] == weights
        and found["physical"] == found["physical_equal"] == (cells if eplb else 0)
        and found["pairs"] == found["pairs_equal"]
        and found["again_cells"] in (0, cells)
        and found["again_cells"] - found["again_cells_equal"] <= found["ambiguous"]
        and found["again_tokens"] in (0, found["oracle_tokens"])
        and found["again_tokens"] - found["again_tokens_equal"] <= found["ambiguous"]
    )
