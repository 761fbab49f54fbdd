"""Emits a small run in the word form of schema 1 through nvtx, and prints what an analysis must find in it.

Two data-parallel ranks, each a spawned process, no GPU. The numbers follow from (rank, step, layer, token) alone.

    nsys profile -t nvtx -s none --cpuctxsw=none -o report python tests/programs/emit_words.py

Where the environment's EMIT_SESSION names a folder, the ranks write the same payloads into journals there too, and
pause between steps, so that the times of both can be compared. The last line of standard output is the JSON that
``expected`` makes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import nvtx

from nvtxmoe.formats import schema, word_payloads
from nvtxmoe.formats.journal import RANKS as JOURNALS
from nvtxmoe.formats.journal import SUFFIX, JournalWriter, record

RANKS = 2
STEPS = 6
LAYERS = (0, 1, 3)  # layer 2 is dense
EXPERTS = 8
TOP_K = 2
SAMPLE_EVERY = 2
PAUSE_S = 0.02
PHASES = ("route", "dispatch", "experts", "combine")


def meta(rank: int) -> dict[str, Any]:
    """The payload of moe.meta."""
    return {
        "schema": schema.SCHEMA,
        "nvtxmoe": "test",
        "vllm": "none",
        "torch": "none",
        "device": "none",
        "rank": rank,
        "world_size": RANKS,
        "dp_rank": rank,
        "dp_size": RANKS,
        "tp_rank": 0,
        "tp_size": 1,
        "ep_rank": 0,
        "ep_size": 1,
        "sample_every": SAMPLE_EVERY,
        "payload_encoding": "words",
        "layers": [
            {
                "layer": layer,
                "name": f"model.layers.{layer}.mlp.experts",
                "num_experts": EXPERTS,
                "top_k": TOP_K,
                "local_experts": list(range(EXPERTS)),
            }
            for layer in LAYERS
        ],
    }


def tokens(rank: int, step: int) -> int:
    """Tokens of a step: one prefill, then decoding."""
    return 12 + rank if step == 0 else 3 + 2 * rank


def routing(rank: int, step: int, layer: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """Experts and weights, tokens x top_k: two different experts a token, expert 7 never, exact weights."""
    token = np.arange(tokens(rank, step))
    first = (3 * token + step + layer + rank) % (EXPERTS - 1)
    second = (first + 1 + (token + layer) % (EXPERTS - 2)) % (EXPERTS - 1)
    weight = (4 + token % 4) / 8
    experts = np.stack([first, second], axis=1).astype(np.uint16)
    return experts, np.stack([weight, 1 - weight], axis=1).astype(np.float32)


def step_payload(rank: int, step: int) -> bytes:
    """The payload of moe.step."""
    count = tokens(rank, step)
    prefill, reqs = (count, 2) if step == 0 else (0, count)
    return np.array((step, rank, count, reqs, prefill, count - prefill, 0), schema.STEP_DTYPE).tobytes()


def counts(rank: int, step: int, layer: int) -> npt.NDArray[np.int64]:
    """Assignments of each expert."""
    return np.bincount(routing(rank, step, layer)[0].ravel(), minlength=EXPERTS)


def counts_payload(rank: int, step: int, layer: int) -> bytes:
    """The payload of moe.counts."""
    row = (step, layer, rank, tokens(rank, step), TOP_K, counts(rank, step, layer))
    return np.array(row, schema.counts_dtype(EXPERTS)).tobytes()


def topk_payload(rank: int, step: int, layer: int) -> bytes:
    """The payload of moe.topk."""
    experts, weights = routing(rank, step, layer)
    rows = np.zeros(len(experts), schema.topk_dtype(TOP_K))
    rows["step"], rows["layer"], rows["token"] = step, layer, np.arange(len(experts))
    rows["experts"], rows["weights"] = experts, weights
    return rows.tobytes()


def payloads(rank: int) -> list[tuple[str, bytes]]:
    """Every payload of a rank in the order in which it is emitted."""
    out = [("meta", json.dumps(meta(rank)).encode())]
    for step in range(STEPS):
        out.append(("step", step_payload(rank, step)))
        out += [("counts", counts_payload(rank, step, layer)) for layer in LAYERS]
        if step % SAMPLE_EVERY == 0:
            out += [("topk", topk_payload(rank, step, layer)) for layer in LAYERS]
    return out


def expected() -> dict[str, Any]:
    """Totals over both ranks, by layer, computed with plain sums from the numbers above."""
    cells = [(rank, step) for rank in range(RANKS) for step in range(STEPS)]
    sampled = [(rank, step) for rank, step in cells if step % SAMPLE_EVERY == 0]
    pairs: dict[str, dict[str, int]] = {str(layer): {} for layer in LAYERS}
    for layer in LAYERS:
        for rank, step in sampled:
            for row in routing(rank, step, layer)[0].tolist():
                key = "{}-{}".format(*sorted(row))
                pairs[str(layer)][key] = pairs[str(layer)].get(key, 0) + 1
    return {
        "ranks": RANKS,
        "steps": STEPS,
        "experts": EXPERTS,
        "top_k": TOP_K,
        "tokens": {str(rank): [tokens(rank, step) for step in range(STEPS)] for rank in range(RANKS)},
        "activations": {
            str(layer): np.sum([counts(rank, step, layer) for rank, step in cells], axis=0).tolist() for layer in LAYERS
        },
        "sampled_tokens": sum(tokens(rank, step) for rank, step in sampled),
        "coselection": pairs,
        "cells": len(cells) * len(LAYERS),
        "marks": {str(rank): sum(len(word_payloads.encode(p)) for _, p in payloads(rank)) for rank in range(RANKS)},
    }


def mark(event: str, payload: bytes) -> None:
    """Emit one payload."""
    for message, word in word_payloads.marks(event, payload):
        nvtx.mark(message, domain=schema.DOMAIN, payload=word)


def emit_layer(layer: int) -> None:
    """Emit a layer's range with its phases inside."""
    nvtx.push_range(f"{schema.LAYER_PREFIX}{layer}", domain=schema.DOMAIN, payload=layer)
    for phase in PHASES:
        nvtx.push_range(schema.PHASE_PREFIX + phase, domain=schema.DOMAIN, category="phase", payload=layer)
        nvtx.pop_range(domain=schema.DOMAIN)
    nvtx.pop_range(domain=schema.DOMAIN)


def emit_rank(rank: int) -> None:
    """Emit a rank's run, as the process of that rank."""
    session = os.environ.get("EMIT_SESSION")
    records = []

    def send(event: str, payload: bytes, time_ns: int | None = None) -> None:
        records.append(record(event, time_ns or time.time_ns(), payload))
        mark(event, payload)

    send("meta", json.dumps(meta(rank)).encode())
    for step in range(STEPS):
        begun_ns = time.time_ns()
        nvtx.push_range(schema.STEP, domain=schema.DOMAIN, payload=step)
        send("step", step_payload(rank, step), begun_ns)
        for layer in LAYERS:
            emit_layer(layer)
        nvtx.pop_range(domain=schema.DOMAIN)
        for layer in LAYERS:
            send("counts", counts_payload(rank, step, layer))
        if step % SAMPLE_EVERY == 0:
            for layer in LAYERS:
                send("topk", topk_payload(rank, step, layer))
        if session is not None:
            time.sleep(PAUSE_S)
    if session is not None:
        writer = JournalWriter(Path(session) / JOURNALS / f"rank{rank}-{os.getpid()}{SUFFIX}")
        writer.append(b"".join(records))
        writer.append(record("end", time.time_ns(), json.dumps({"steps": STEPS, "lost": {}, "failures": {}}).encode()))
        writer.close()


def main() -> None:
    """Run the ranks one beside the other and print what was expected of them."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=emit_rank, args=(rank,)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    failed = [process.exitcode for process in ranks if process.exitcode]
    if failed:
        raise SystemExit(f"a rank failed: exit codes {failed}")
    sys.stdout.write(json.dumps(expected()) + "\n")


if __name__ == "__main__":
    main()
