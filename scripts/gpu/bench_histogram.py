#!/usr/bin/env python3
"""GPU time that counting a step's routing adds, for ways to do it, beside a CUDA graph of a made-up model.

    python scripts/gpu/bench_histogram.py

A graph of 48 layers (router GEMM, softmax, top-k, a dense product each) is replayed; after each replay the routing is
counted. Prints GPU time a step from CUDA events around blocks of 100 steps, in alternating blocks, as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nvtxmoe.capture.cuda_counting import _addresses, torch_histogram
from nvtxmoe.capture.routed import Routed, alike
from nvtxmoe.capture.triton_histogram import histogram

LAYERS, EXPERTS, TOP_K, TOKENS, HIDDEN = 48, 128, 8, 32, 2048
BLOCKS, STEPS = 15, 100


def model() -> tuple[Any, list[Routed], torch.Tensor]:
    """A captured graph, its routing tensors by reference, and its input."""
    gates = [torch.randn(HIDDEN, EXPERTS, device="cuda", dtype=torch.bfloat16) for _ in range(LAYERS)]
    dense = [torch.randn(HIDDEN, HIDDEN, device="cuda", dtype=torch.bfloat16) / 45 for _ in range(LAYERS)]
    x = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)

    def forward() -> list[Routed]:
        y, out = x, []
        for layer in range(LAYERS):
            weights, ids = (y @ gates[layer]).float().softmax(-1).topk(TOP_K)
            out.append(Routed(layer, EXPERTS, ids.to(torch.int32), weights))
            for _ in range(4):
                y = torch.tanh(y @ dense[layer])
        return out

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routed = forward()
    return graph, routed, x


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    graph, routed, _ = model()
    (group,) = alike(tuple(routed))
    table = _addresses(group)
    size = LAYERS * EXPERTS
    pinned = torch.empty(size, dtype=torch.int32, pin_memory=True)
    device = torch.empty(size, dtype=torch.int32, device="cuda")
    table_there = table.cuda()
    side, event, back = torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.Event()

    def to_pinned() -> None:
        histogram(group, table, pinned, TOKENS)

    def table_on_device() -> None:
        histogram(group, table_there, pinned, TOKENS)

    def with_copy() -> None:
        histogram(group, table_there, device, TOKENS)
        pinned.copy_(device, non_blocking=True)

    def beside() -> None:
        event.record()
        side.wait_event(event)
        with torch.cuda.stream(side):
            histogram(group, table_there, pinned, TOKENS)
            back.record()
        torch.cuda.current_stream().wait_event(back)

    ways: dict[str, Callable[[], None]] = {
        "nothing": lambda: None,
        "kernel, table and counts in pinned memory": to_pinned,
        "kernel, table on the device, counts in pinned memory": table_on_device,
        "kernel and copy": with_copy,
        "kernel on another stream, joined": beside,
        "PyTorch's operations": lambda: torch_histogram(group, table, pinned, TOKENS),
    }
    wanted = torch.stack([torch.bincount(one.ids.flatten(), minlength=EXPERTS) for one in routed]).int()
    right = {}
    for name, way in ways.items():
        pinned.fill_(-1)
        graph.replay()
        way()
        torch.cuda.synchronize()
        wanted = torch.stack([torch.bincount(one.ids.flatten(), minlength=EXPERTS) for one in routed]).int().cpu()
        right[name] = bool((pinned.view(LAYERS, EXPERTS) == wanted).all())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(BLOCKS):
        for name, way in ways.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(STEPS):
                graph.replay()
                way()
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end) * 1000 / STEPS)
    base = statistics.median(times["nothing"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(json.dumps({
            "way": name, "right": right[name], "us_a_step": round(middle, 2), "added_us": round(middle - base, 2),
            "added_pct": round(100 * (middle / base - 1), 3),
            "spread_us": [round(min(values), 2), round(max(values), 2)],
        }))  # fmt: skip


if __name__ == "__main__":
    main()
