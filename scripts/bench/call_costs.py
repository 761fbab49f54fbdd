#!/usr/bin/env python3
"""CPU time of single calls that recording makes in every step, on a GPU, as they are met in serving: after a pause.

    python scripts/bench/call_costs.py [--nodes 1000] [--rounds 60]
    nsys profile -t cuda,nvtx --cuda-graph-trace=node -s none --cpuctxsw=none python scripts/bench/call_costs.py

Each round writes 64 MB, so that code and data leave the CPU's caches, replays a CUDA graph, and then times one call:
the counting kernel's launch by the driver and by Triton, a CUDA event, and NVTX ranges with a struct, with an int and
with nothing. `after an operation` rows run a small operation of PyTorch between the replay and the call: they tell what
of a launch's cost is that of the first launch after a graph. Prints one line of JSON per call: median and quartiles in
microseconds of wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import nvtx  # noqa: E402
import torch  # noqa: E402

from nvtxmoe.capture.recording.current_stream import CurrentStreams  # noqa: E402
from nvtxmoe.capture.recording.launch import Launch  # noqa: E402
from nvtxmoe.capture.recording.triton_histogram import histogram  # noqa: E402
from nvtxmoe.capture.run_identity import Step  # noqa: E402
from nvtxmoe.formats import schema  # noqa: E402

LAYERS, EXPERTS, TOP_K, TOKENS = 48, 128, 8, 32
THRASHED_BYTES = 64 << 20


def launches() -> dict[str, Callable[[], Any]]:
    """Launches of the counting kernel, and the event after it."""
    device = torch.device("cuda", torch.cuda.current_device())
    ids = torch.randint(0, EXPERTS, (LAYERS, TOKENS, TOP_K), dtype=torch.int32, device=device)
    table = torch.tensor([layer.data_ptr() for layer in ids], dtype=torch.int64).pin_memory()
    out = torch.zeros(LAYERS * EXPERTS, dtype=torch.int32).pin_memory()
    launch = Launch(tuple(range(LAYERS)), EXPERTS, TOP_K, False, TOP_K, 4, device)
    histogram(launch, table, out, TOKENS)
    prepared = launch.prepared["count"]
    calls: dict[str, Callable[[], Any]] = {"launch by Triton": partial(prepared, device, table, out, TOKENS)}
    by_driver = prepared.into(device, table, out)
    if by_driver is not None:
        calls["launch by the driver"] = partial(by_driver, TOKENS)
    torch.cuda.synchronize()
    streams, event, tensors = CurrentStreams(), torch.cuda.Event(), (ids, table, out)
    calls["CUDA event"] = lambda: streams.record(event, tensors[0].device)
    return calls


def ranges() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By kind of payload: what opens a range and what closes it."""
    domain: Any = nvtx.get_domain(schema.DOMAIN)
    payloads = {"a struct": Step(1, 0, 32, 32, 0, 32).payload(), "an int": 1, "nothing": None}
    made: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for kind, payload in payloads.items():
        attributes = domain.get_event_attributes(message=f"with {kind}", payload=payload)
        made[kind] = partial(domain.push_range, attributes), domain.pop_range
    return made


def timed(call: Callable[[], Any]) -> float:
    """Microseconds."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1000


def main() -> None:
    """Measure each call in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000, help="Kernels of the graph.")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    x = torch.zeros(1 << 20, device="cuda")
    graph = torch.cuda.CUDAGraph()
    x.add_(1)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(options.nodes):
            x.add_(1)
    big, times = torch.zeros(THRASHED_BYTES // 8, dtype=torch.int64), dict[str, list[float]]()
    calls, opened = launches(), ranges()
    for _ in range(options.rounds):
        for name, call in calls.items():
            for between in ("", ", after an operation"):
                torch.cuda.synchronize()
                big.add_(1)
                graph.replay()
                if between:
                    x.add_(1)
                times.setdefault(name + between, []).append(timed(call))
        for kind, (push, pop) in opened.items():
            big.add_(1)
            times.setdefault(f"NVTX range with {kind}, push", []).append(timed(push))
            big.add_(1)
            times.setdefault(f"NVTX range with {kind}, pop", []).append(timed(pop))
    for name, us in times.items():
        low, middle, high = statistics.quantiles(us[options.rounds // 10 :], n=4)
        print(
            json.dumps({"call": name, "median_us": round(middle, 1), "quartiles_us": [round(low, 1), round(high, 1)]})
        )


if __name__ == "__main__":
    main()
