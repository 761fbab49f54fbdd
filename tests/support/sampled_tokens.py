"""Sampled tokens of several layers, made in a test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.events.tables import TopkTable
from nvtxmoe_analysis.metrics.cross_layer import CrossLayer, cross_layer

#: (rank, step, token) -> experts, by layer
Chosen = dict[int, dict[tuple[int, int, int], list[int]]]


def table(chosen: Chosen) -> TopkTable:
    """Sampled tokens as events hold them: a run a (rank, step, layer)."""
    rows: list[tuple[int, ...]] = []
    token: list[int] = []
    experts: list[list[int]] = []
    width = max(len(one) for of_layer in chosen.values() for one in of_layer.values())
    for layer, of_layer in chosen.items():
        runs: dict[tuple[int, int], list[int]] = defaultdict(list)
        for rank, step, number in of_layer:
            runs[rank, step].append(number)
        for (rank, step), numbers in runs.items():
            picked = [of_layer[rank, step, number] for number in numbers]
            rows.append((rank, step, layer, len(picked[0]), len(token), len(numbers)))
            token += numbers
            experts += [[*one, *[-1] * (width - len(one))] for one in picked]
    names = ("rank", "step", "layer", "top_k", "first", "tokens")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row")
    ids = np.array(experts, dtype=np.int32)
    return TopkTable(frame, np.array(token, dtype=np.int32), ids, np.zeros(ids.shape, dtype=np.float32))


def of_layers(layers: Sequence[Any]) -> Chosen:
    """One step of one rank; ``layers`` are [tokens][top_k]."""
    return {n: {(0, 0, t): list(map(int, one)) for t, one in enumerate(rows)} for n, rows in enumerate(layers)}


def compared(chosen: Chosen, layers: Sequence[int] | None = None) -> CrossLayer:
    return cross_layer(table(chosen), sorted(chosen) if layers is None else layers)


def independent(seed: int, tokens: int, experts: int, top_k: int, layers: int = 2) -> Chosen:
    """Layers that know nothing of each other; their experts are not equally likely."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        weight = rng.uniform(0.3, 1.0, experts)
        keys = rng.random((tokens, experts)) ** (1 / weight)  # Efraimidis and Spirakis: draws without replacement
        rows.append(np.argsort(-keys, axis=1)[:, :top_k])
    return of_layers(rows)


def ids(chosen: Chosen, layer: int) -> list[list[int]]:
    """The experts of a layer's tokens, in the tokens' order."""
    return [chosen[layer][key] for key in sorted(chosen[layer])]
