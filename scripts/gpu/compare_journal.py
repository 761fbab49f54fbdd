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
        totals: sums by the names of ``COUNTS``.
        meta: the last moe.meta.
    """

    def __init__(self, oracle: Steps) -> None:
        self.oracle = oracle
        self.totals = dict.fromkeys(COUNTS, 0)
        self.meta: dict[str, Any] = {}
        self._at = {layer: at for at, layer in enumerate(oracle.layers)}
        self._layers: dict[int, dict[str, Any]] = {}

    def recording(self, layer: int) -> str:
        """How moe.meta tells that a layer was recorded: in the layer, or for all layers, or by ranges of layers."""
        layer_recording = self._layers.get(layer, {}).get("recording")
        return str(layer_recording or recording_of(self.meta.get("recording"), layer) or REFERENCES)

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
        self.totals["steps"] += int(known and row["num_tokens"] == len(self.oracle.ids[step]))

    def _counts(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[8:12], "<i4")[0])
        if layer - AGAIN in self._at:
            self._counts_again(layer, payload)
            return
        if layer not in self._at:  # a draft's
            self.totals["other_layers_cells"] += 1
            return
        experts = self._layers[layer]["num_experts"]
        row = np.frombuffer(payload, schema.counts_dtype(experts))[0]
        step, at = int(row["step"]), self._at[layer]
        expected_counts = np.bincount(self.oracle.ids[step][:, at].ravel(), minlength=experts)
        differing = int(np.abs(expected_counts - row["counts"].astype(np.int64)).sum())
        self.totals["cells"] += 1
        self.totals["cells_equal"] += int(differing == 0)
        self.totals["cells_excused"] += int(0 < differing <= 2 * int(self._tied(step, at).sum()))

    def _counts_again(self, layer: int, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        experts = self._layers[layer]["num_experts"]
        row = np.frombuffer(payload, schema.counts_dtype(experts))[0]
        chosen = self.oracle.ids[int(row["step"])][:, self._at[layer - AGAIN]]
        self.totals["again_cells"] += 1
        self.totals["again_cells_equal"] += int(
            np.array_equal(np.bincount(chosen.ravel(), minlength=experts), row["counts"])
        )

    def _topk_again(self, layer: int, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        rows = np.frombuffer(payload, schema.topk_dtype(self._layers[layer]["top_k"]))
        expected_ids = self.oracle.ids[int(rows["step"][0])][:, self._at[layer - AGAIN]]
        self.totals["again_tokens"] += len(rows)
        if rows["experts"].shape == expected_ids.shape:
            same = (np.sort(rows["experts"], axis=1) == np.sort(expected_ids, axis=1)).all(axis=1)
            self.totals["again_tokens_equal"] += int(same.sum())

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
            for first, other in itertools.combinations(range(chosen.shape[1]), 2):
                np.add.at(square, (chosen[:, first], chosen[:, other]), 1)
        square += square.T
        self.totals["pairs"] += 1
        self.totals["pairs_equal"] += int(np.array_equal(square[np.triu_indices(experts, 1)], row["pairs"]))

    def _physical(self, payload: bytes) -> None:
        from nvtxmoe.formats import schema  # noqa: PLC0415

        layer = int(np.frombuffer(payload[8:12], "<i4")[0])
        if layer not in self._at or not self.oracle.physical:
            return
        known = self._layers[layer]
        slots = known.get("num_physical_experts", known["num_experts"])  # absent without redundant experts
        row = np.frombuffer(payload, schema.counts_dtype(slots))[0]
        step, at = int(row["step"]), self._at[layer]
        chosen = self.oracle.physical[step][:, at]
        self.totals["physical"] += 1
        self.totals["physical_equal"] += int(
            np.array_equal(np.bincount(chosen.ravel(), minlength=slots), row["counts"])
        )
        self.totals["mapped"] += int((chosen != self.oracle.ids[step][:, at]).any())

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
        ids, expected_ids = rows["experts"].astype(np.int64), self.oracle.ids[step][:, at]
        if ids.shape != expected_ids.shape:
            self.totals["tokens"] += len(ids)
            return
        in_order = (ids == expected_ids).all(axis=1)
        order, wanted_order = np.argsort(ids, axis=1), np.argsort(expected_ids, axis=1)
        by_set = (np.take_along_axis(ids, order, 1) == np.take_along_axis(expected_ids, wanted_order, 1)).all(axis=1)
        ordered = self.recording(layer) == REFERENCES
        equal = in_order if ordered else by_set
        tied = self._tied(step, at)
        totals = self.totals
        totals["tokens"] += len(rows)
        totals["tokens_equal"] += int(equal.sum())
        totals["tokens_in_order"] += int(in_order.sum())
        totals["tokens_tied"] += int(tied.sum())
        totals["tokens_excused"] += int((~equal & tied).sum())
        if self.oracle.weights:
            weights, reference_weights = rows["weights"], self.oracle.weights[step][:, at].astype(np.float32)
            if not ordered:
                weights, reference_weights = (
                    np.take_along_axis(weights, order, 1),
                    np.take_along_axis(reference_weights, wanted_order, 1),
                )
            unknown = np.isnan(weights).all(axis=1)
            totals["weights"] += int(equal.sum())
            totals["weights_unknown"] += int((equal & unknown).sum())
            totals["weights_equal"] += int((equal & (weights == reference_weights).all(axis=1)).sum())
            totals["weights_close"] += int(
                (equal & (np.abs(weights - reference_weights) <= WEIGHT_TOLERANCE).all(axis=1)).sum()
            )


def recording_of(declared: str | dict[str, str] | None, layer: int) -> str | None:
    """The way of a layer in the ``recording`` of moe.meta: one way, or ranges (``0-3,5``) by way; None without it."""
    if not isinstance(declared, dict):
        return declared
    for way, numbers in declared.items():
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            if int(first) <= layer <= int(last or first):
                return way
    return None


def compare(journal: Path, oracle: Steps, *, eplb: bool = False, dbo: bool = False) -> dict[str, Any]:
    """Compare a rank's journal with its oracle.

    Parameters:
        journal: of the process that the oracle was in.
        eplb: physical counts have to be there.
        dbo: steps have to be there whose tokens lie in two micro-batches, as vLLM divided them.

    Returns:
        The sums, what ran, how each layer was recorded, and ``exact``.
    """
    from nvtxmoe.formats.journal import EVENTS, Journal  # noqa: PLC0415

    record = Journal(journal)
    comparison = Comparison(oracle)
    for part in record.bulk():
        for place in range(len(part)):
            comparison.take(EVENTS[int(part.event[place])], part.payloads(np.array([place])).tobytes())
    meta, totals = comparison.meta, comparison.totals
    ended = json.loads(record.ended) if record.ended else None
    hidden = {**((meta.get("capture") or {}).get("hidden_layers") or {})}
    hidden |= {**((ended or {}).get("hidden_layers") or {})}
    recordings: dict[str, list[int]] = {}
    for layer in oracle.layers:
        known = layer in comparison._layers and str(layer) not in hidden
        recordings.setdefault(comparison.recording(layer) if known else "hidden", []).append(layer)
    steps = len(oracle.ids) - oracle.idle
    report = {
        **totals,
        "oracle_steps": steps,
        "oracle_cells": steps * len(oracle.layers),
        "oracle_tokens": sum(len(step) for step in oracle.ids) * len(oracle.layers),
        "ambiguous": sum((meta.get("ambiguous_tokens") or {}).values()),
        "idle": oracle.idle,
        "experts_used": experts_used(oracle),
        "replayed_steps": sum(number > 0 for number in oracle.replays),
        "replays": sum(oracle.replays),
        **micro_batched(oracle),
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
    return {"exact": is_exact(report, eplb=eplb) and bool(report["micro_batched_steps"] or not dbo), **report}


def micro_batched(oracle: Steps) -> dict[str, int]:
    """Steps with tokens in more than one micro-batch, their tokens, and those of the steps that replayed a graph."""
    tokens = [len(step) for step in oracle.ids if len(step)]  # an idle batch has no entry in the other lists
    divided = [
        (number, replays)
        for number, replays, starts in zip(tokens, oracle.replays, oracle.micro_batches, strict=False)
        if len(starts) > 1 and starts[1] < number
    ]
    return {
        "micro_batched_steps": len(divided),
        "micro_batched_tokens": sum(number for number, _ in divided),
        "micro_batched_replays": sum(replays > 0 for _, replays in divided),
    }


def experts_used(oracle: Steps) -> int:
    """Fewest different experts that any layer chose in the whole run: few would make a comparison worthless."""
    if not oracle.layers or not any(len(step) for step in oracle.ids):
        return 0
    every = np.concatenate([step for step in oracle.ids if len(step)])
    return min(len(np.unique(every[:, at])) for at in range(len(oracle.layers)))


def is_exact(comparison: dict[str, Any], *, eplb: bool) -> bool:
    """Everything was recorded, and equals the oracle but for ties that may fall either way."""
    cells = comparison["oracle_cells"]
    recomputed = RECOMPUTED in comparison["recording"]
    weights = comparison["weights_unknown"] + (
        comparison["weights_close"] if recomputed else comparison["weights_equal"]
    )
    return bool(
        cells
        and comparison["cells"] == comparison["cells_equal"] + comparison["cells_excused"] == cells
        and comparison["steps"] == comparison["oracle_steps"]
        and comparison["tokens"]
        == comparison["tokens_equal"] + comparison["tokens_excused"]
        == comparison["oracle_tokens"]
        and comparison["weights"] == weights
        and comparison["physical"] == comparison["physical_equal"] == (cells if eplb else 0)
        and comparison["pairs"] == comparison["pairs_equal"]
        and comparison["again_cells"] in (0, cells)
        and comparison["again_cells"] - comparison["again_cells_equal"] <= comparison["ambiguous"]
        and comparison["again_tokens"] in (0, comparison["oracle_tokens"])
        and comparison["again_tokens"] - comparison["again_tokens_equal"] <= comparison["ambiguous"]
    )
