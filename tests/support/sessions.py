"""Sessions of direct mode, built record by record; ``run_of`` has the numbers of ``export_builder.simple_run``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import RANKS, SUFFIX, JournalWriter, record

#: Unix time at which constructed runs begin, and between their records.
BEGUN_NS, EVERY_NS = 1_700_000_000_000_000_000, 10_000_000
ENDED: dict[str, Any] = {"steps": 3, "lost": {}, "failures": {}}

Payload = tuple[str, bytes]


def meta_of(rank: int = 0, *, world_size: int = 1, tp_size: int = 1, **more: Any) -> dict[str, Any]:
    """What moe.meta says of a process with layers 0 and 1 of four experts, top-2."""
    layers = [{"layer": n, "name": f"layers.{n}", "num_experts": 4, "top_k": 2} for n in range(2)]
    return {
        "schema": 1,
        "nvtxmoe": "0.1.0",
        "rank": rank,
        "world_size": world_size,
        "tp_rank": rank % tp_size,
        "tp_size": tp_size,
        "ep_rank": 0,
        "ep_size": 1,
        "sample_every": 0,
        "layers": layers,
        **more,
    }


def meta(**said: Any) -> Payload:
    """A record of moe.meta."""
    return "meta", json.dumps(meta_of(**said)).encode()


def step(number: int, rank: int = 0, tokens: int = 3) -> Payload:
    """A step that decodes."""
    return "step", np.array((number, rank, tokens, 1, 0, tokens, 0), schema.STEP_DTYPE).tobytes()


def counts(
    number: int, layer: int, chosen: Sequence[int], rank: int = 0, tokens: int = 3, event: str = "counts"
) -> Payload:
    """Counts of top-2."""
    row = (number, layer, rank, tokens, 2, list(chosen))
    return event, np.array(row, schema.counts_dtype(len(chosen))).tobytes()


def topk(number: int, layer: int, experts: Sequence[Sequence[int]]) -> Payload:
    """Samples; the weights are 1/2, 1/4, ..."""
    weights = [2.0 ** -(i + 1) for i in range(len(experts[0]))]
    rows = [(number, layer, token, list(chosen), weights) for token, chosen in enumerate(experts)]
    return "topk", np.array(rows, schema.topk_dtype(len(experts[0]))).tobytes()


def pairs(first: int, last: int, layer: int, experts: int, rank: int = 0) -> Payload:
    """Co-selection, rising from 0."""
    triangle = np.arange(schema.pairs_length(experts))
    return "pairs", np.array((first, last, layer, rank, 9, triangle), schema.pairs_dtype(experts)).tobytes()


def chosen_of(number: int, layer: int) -> list[list[int]]:
    """Experts of the three tokens of a step, as in ``export_builder.simple_run``."""
    return [[(token + layer + i) % 4 for i in range(2)] for token in range(3)]


def step_of(number: int, rank: int = 0) -> list[Payload]:
    """A step, its counts and its samples."""
    found = [step(number, rank)]
    for layer in range(2):
        tokens = chosen_of(number, layer)
        found.append(counts(number, layer, np.bincount(np.ravel(tokens), minlength=4).tolist(), rank))
        found.append(topk(number, layer, tokens))
    return found


def run_of(rank: int = 0, *, steps: int = 3, **said: Any) -> list[Payload]:
    """A whole little run: two layers, four experts, three tokens a step."""
    return [
        meta(**{"rank": rank, "sample_every": 1, **said}),
        *(one for number in range(steps) for one in step_of(number, rank)),
    ]


def journal(
    session: Path,
    payloads: Iterable[Payload],
    *,
    rank: int = 0,
    pid: int = 100,
    end: dict[str, Any] | None = ENDED,
    times_ns: Sequence[int] | None = None,
    block_records: int = 4,
) -> Path:
    """Write a process's journal into a session.

    Parameters:
        end: what its last record says; None where it was killed.
        times_ns: of the records; every EVERY_NS where they are not given.
        block_records: records a block.
    """
    payloads = list(payloads)
    writer = JournalWriter(session / RANKS / f"rank{rank}-{pid}{SUFFIX}")
    records = [
        record(event, BEGUN_NS + at * EVERY_NS if times_ns is None else times_ns[at], payload)
        for at, (event, payload) in enumerate(payloads)
    ]
    for at in range(0, len(records), block_records):
        writer.append(b"".join(records[at : at + block_records]))
    if end is ENDED:
        end = {**ENDED, "steps": sum(event == "step" for event, _ in payloads)}
    if end is not None:
        writer.append(record("end", BEGUN_NS, json.dumps(end).encode()))
    writer.close()
    return writer.path
