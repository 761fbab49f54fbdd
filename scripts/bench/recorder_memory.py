#!/usr/bin/env python3
"""Does the recorder keep its memory flat? An hour's worth of steps through it and its sink, without a GPU.

    python scripts/bench/recorder_memory.py [--mode moe|nsys] [--steps 200000] [--late-steps 0]

The recorder runs as in scripts/bench/recorder_cpu.py: steps replay a stand-in for a CUDA graph of 48 layers, 128
experts, top-8, 32 tokens. The stand-in for the counting kernel writes other counts in each step. Steps follow one
another without a pause, but wait while more than 4 MiB wait for the disk or 64 steps for the thread that sends. The
mode nsys needs nvtx 0.2.15 or newer. ``--late-steps`` has the disk stop once for so many steps, after a third of all:
records pile up, and no step waits for them.

Prints JSON: resident memory at every tenth of the steps, ``growth_mib`` from the first tenth on, when buffers have
their size; ``trimmed_mib`` is what the C library gives back when it is asked to, memory that it kept free;
``most_waiting_mib`` is the most that waited for the disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.recorder_cpu import TOKENS, TOP_K, Subject, listening_domain, without_gpu  # noqa: E402

LAYERS, EXPERTS = 48, 128
MOST_PENDING, MOST_WAITING_BYTES = 64, 4 << 20


def resident_mib() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def waiting_bytes(sink: Any) -> int:
    """Bytes that wait for the disk; 0 where the sink has none."""
    waiting = getattr(sink, "_waiting", None)
    return waiting.size_bytes if waiting is not None else 0


def counts_of_steps() -> list[Any]:
    """Counts of 64 made-up steps, int32 [layers x experts]: every token has its experts."""
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    chosen = torch.rand(64, LAYERS, TOKENS, EXPERTS).topk(TOP_K).indices.flatten(2)
    counts = torch.zeros(64, LAYERS, EXPERTS, dtype=torch.int64).scatter_add_(2, chosen, torch.ones_like(chosen))
    return list(counts.to(torch.int32).flatten(1))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps; the figures."""
    counts = counts_of_steps()
    steps = 0

    def histogram(_launch: Any, _table: Any, out: Any, _rows: int) -> None:
        out.copy_(counts[steps % len(counts)])

    subject = Subject(ROOT, options.mode, LAYERS, EXPERTS, histogram=histogram, interval_s=1.0)
    recorder, graph = subject.recorder, id(subject.graph)
    sink = recorder.recorded.sinks[0]
    most_waiting_bytes = 0
    late_from = options.steps // 3
    memory: list[float] = []
    cpu, began = time.process_time(), time.monotonic()
    for steps in range(options.steps):
        if steps % max(1, options.steps // 10) == 0:
            memory.append(round(resident_mib(), 1))
        if options.late_steps and steps == late_from:
            sink._writing.acquire()
        if options.late_steps and steps == late_from + options.late_steps:
            sink._writing.release()
        recorder.begin_step(TOKENS, TOKENS, 0, TOKENS)
        recorder.replayed(graph)
        recorder.forward_done()
        recorder.end_step()
        most_waiting_bytes = max(most_waiting_bytes, waiting_bytes(sink))
        while len(recorder._counter._pending) > MOST_PENDING or (
            waiting_bytes(sink) > MOST_WAITING_BYTES and not late_from <= steps < late_from + options.late_steps
        ):
            time.sleep(0.001)
    took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    memory.append(round(resident_mib(), 1))
    ctypes.CDLL(None).malloc_trim(0)
    trimmed_mib = memory[-1] - resident_mib()
    recorder.close()
    journal_bytes = None
    if options.mode == "moe":
        journal_bytes = sink.path.stat().st_size
        shutil.rmtree(sink.path.parents[1])
    return {
        "mode": options.mode, "steps": options.steps, "resident_mib": memory,
        "growth_mib": round(max(memory[1:]) - memory[1], 1), "trimmed_mib": round(trimmed_mib, 1),
        "most_waiting_mib": round(most_waiting_bytes / (1 << 20), 1),
        "us_per_step": round(took_s / options.steps * 1e6, 1),
        "cpu_us_per_step": round(cpu_s / options.steps * 1e6, 1), "lost": dict(recorder.lost),
        "dropped": getattr(sink, "dropped", 0),
        "journal_mb": None if journal_bytes is None else round(journal_bytes / 1e6, 1),
    }  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["moe", "nsys"], default="moe")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--late-steps", type=int, default=0, help="Steps for which the disk stops once.")
    options = parser.parse_args()
    without_gpu()
    if options.mode == "nsys":
        listening_domain()
    print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
