#!/usr/bin/env python3
"""Does direct mode keep its memory flat? An hour's worth of steps through the recorder and its journal.

    python scripts/bench/direct_memory.py [--steps 200000]

Needs PyTorch (a CPU is enough). 48 layers, 128 experts, top-8, 32 tokens a step, sampled tokens on every 100th step.
Prints resident memory after every tenth of the steps, as JSON, and the size of the journal.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from nvtxmoe.capture.sinks.journal import JournalSink

LAYERS, EXPERTS, TOP_K, TOKENS = 48, 128, 8, 32


def resident_mib() -> float:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    sinks: list[JournalSink] = []

    def make(identity: Identity) -> list[JournalSink]:
        sinks.append(JournalSink(folder, identity.rank, 1.0))
        return sinks

    recorder = Recorder(make, sample_every=100)
    layers = tuple(LayerInfo(n, f"layers.{n}", EXPERTS, TOP_K) for n in range(LAYERS))
    recorder.model_loaded(Identity(layers=layers))
    ids = [torch.rand(TOKENS, EXPERTS).topk(TOP_K).indices.to(torch.int32) for _ in range(64)]
    weights = torch.rand(TOKENS, TOP_K)
    began, memory = time.monotonic(), []
    for step in range(options.steps):
        if step % max(1, options.steps // 10) == 0:
            memory.append(round(resident_mib(), 1))
        recorder.begin_step(TOKENS, TOKENS, 0, TOKENS)
        for layer in range(LAYERS):
            recorder.routed(RoutingTensors(layer, EXPERTS, ids[(step + layer) % 64], weights))
        recorder.forward_done()
        recorder.end_step()
    took_s = time.monotonic() - began
    recorder.close()
    memory.append(round(resident_mib(), 1))
    print(json.dumps({
        "steps": options.steps, "resident_mib": memory, "us_a_step": round(took_s / options.steps * 1e6, 1),
        "journal_mb": round(sinks[0].path.stat().st_size / 1e6, 1), "lost": dict(recorder.lost),
        "dropped": sinks[0].dropped,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
