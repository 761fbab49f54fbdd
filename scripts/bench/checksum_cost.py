#!/usr/bin/env python3
"""What share of a step's CPU time do checksums take? The recorder without a GPU, the work of all threads in one.

    python scripts/bench/checksum_cost.py [--steps 2000]

Steps are those of scripts/bench/recorder_memory.py. In mode nsys (nvtx 0.2.15 or newer) each mark of counts has a
CRC-32 of its payload; in mode moe each block of the journal has one of its compressed bytes. 16 steps are sent
together, and in mode moe written together. Prints JSON per mode: medians of CPU time over groups of 16 steps, in us
per step: `serving` are the recorder's four calls, `sending` makes events of counts, `writing` compresses and writes.
`checksums` is a part of the last two, and `share_pct` its share of all three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.recorder_cpu import TOKENS, Subject, listening_domain, without_gpu  # noqa: E402
from scripts.bench.recorder_memory import EXPERTS, LAYERS, counts_of_steps  # noqa: E402

GROUP = 16


class Timed:
    """A function whose CPU time is added up."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.spent_ns = function, 0

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        begun = time.thread_time_ns()
        try:
            return self.function(*args)
        finally:
            self.spent_ns += time.thread_time_ns() - begun


def measure(mode: str, steps: int, counts: list[Any]) -> dict[str, Any]:
    """CPU times of one mode."""
    counts_in_turn = itertools.cycle(counts)

    def histogram(_launch: Any, _table: Any, out: Any, _rows: int) -> None:
        out.copy_(next(counts_in_turn))

    subject = Subject(ROOT, mode, LAYERS, EXPERTS, histogram=histogram)
    recorder, graph = subject.recorder, id(subject.graph)
    sink = recorder.recorded.sinks[0]
    recorder._closed = True  # ends the thread that sends: its work is done here
    recorder._sending.wake()
    recorder._sending.thread.join()
    recorder._closed = False
    checksums = _timed_checksums(mode)
    rows: list[dict[str, float]] = []
    for _ in range(steps // GROUP):
        before, at = checksums.spent_ns, [time.thread_time_ns()]
        for _step in range(GROUP):
            recorder.begin_step(TOKENS, TOKENS, 0, TOKENS)
            recorder.replayed(graph)
            recorder.forward_done()
            recorder.end_step()
        at.append(time.thread_time_ns())
        recorder.send_arrived()
        at.append(time.thread_time_ns())
        if mode == "moe":
            sink.flush()
        at.append(time.thread_time_ns())
        spent = [(end - begin) / GROUP / 1000 for begin, end in itertools.pairwise(at)]
        named = dict(zip(("serving", "sending", "writing"), spent, strict=True))
        rows.append({**named, "checksums": (checksums.spent_ns - before) / GROUP / 1000})
    recorder.close()
    us = {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
    shares = [100 * row["checksums"] / (row["serving"] + row["sending"] + row["writing"]) for row in rows]
    return {"mode": mode, "steps": steps, "us_per_step": us, "share_pct": round(statistics.median(shares), 1)}


def _timed_checksums(mode: str) -> Timed:
    if mode == "nsys":
        emitter = sys.modules["nvtxmoe.capture.sinks.nvtx_emitter"]
        timed = Timed(emitter.seal)
        emitter.seal = timed  # type: ignore[attr-defined]
        return timed
    journal = sys.modules["nvtxmoe.formats.journal"]
    zlib = journal.zlib
    timed = Timed(zlib.crc32)
    journal.zlib = SimpleNamespace(compress=zlib.compress, crc32=timed)  # type: ignore[attr-defined]
    return timed


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    without_gpu()
    listening_domain()
    counts = counts_of_steps()
    for mode in ("moe", "nsys"):
        print(json.dumps(measure(mode, options.steps, counts)), flush=True)


if __name__ == "__main__":
    main()
