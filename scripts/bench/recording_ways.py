#!/usr/bin/env python3
"""GPU time that ways of recording routing add to a CUDA graph, side by side in one process.

    python scripts/bench/recording_ways.py

The graph has the routing shape of Qwen3-30B-A3B (48 layers, 128 experts, top-8, 32 tokens): in each layer a gate,
softmax, top-k and some dense products. Some ways add nodes to the graph (each has a graph of its own), ours counts
after the replay. Every step ends with an argmax, as a sampler would. Ways take turns in blocks of steps; GPU time is
from CUDA events around a block. Prints a line of JSON a way: median, spread, and the paired difference to nothing.
Where vLLM can be imported, its EPLB kernel is one of the ways.
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
from nvtxmoe.capture.recording.cuda_counter import _addresses, _launch_of
from nvtxmoe.capture.recording.kernel_launch import torch_histogram
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors, group_by_shape
from nvtxmoe.capture.recording.triton_histogram import histogram

LAYERS, EXPERTS, TOP_K, TOKENS, HIDDEN = 48, 128, 8, 32, 2048
BLOCKS, STEPS = 31, 60

Record = Callable[[int, torch.Tensor, torch.Tensor], None]


class Model:
    """A made-up model whose routing a function may look at, layer by layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        half = {"device": "cuda", "dtype": torch.bfloat16}
        self.gates = [torch.randn(HIDDEN, EXPERTS, **half) for _ in range(LAYERS)]
        self.dense = [torch.randn(HIDDEN, HIDDEN, **half) / 45 for _ in range(LAYERS)]
        self.x = torch.randn(TOKENS, HIDDEN, **half)

    def forward(self, record: Record) -> torch.Tensor:
        """All layers."""
        y = self.x
        for layer in range(LAYERS):
            weights, ids = (y @ self.gates[layer]).float().softmax(-1).topk(TOP_K)
            record(layer, ids.to(torch.int32), weights)
            for _ in range(4):
                y = torch.tanh(y @ self.dense[layer])
        return y

    def captured(self, record: Record) -> Any:
        """A graph of the forward."""
        with torch.cuda.stream(torch.cuda.Stream()):
            self.forward(record)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.forward(record)
        return graph


def in_graph() -> dict[str, Record]:
    """Ways that add nodes to the graph."""
    ids_there = torch.zeros(LAYERS, 512, TOP_K, dtype=torch.int32, device="cuda")
    weights_there = torch.zeros(LAYERS, 512, TOP_K, device="cuda")
    by_token = torch.zeros(512, LAYERS, TOP_K, dtype=torch.int32, device="cuda")

    def both(layer: int, ids: torch.Tensor, weights: torch.Tensor) -> None:
        ids_there[layer, : len(ids)].copy_(ids)
        weights_there[layer, : len(ids)].copy_(weights)

    def ids_only(layer: int, ids: torch.Tensor, _: torch.Tensor) -> None:
        ids_there[layer, : len(ids)].copy_(ids)

    def as_routed_experts(layer: int, ids: torch.Tensor, _: torch.Tensor) -> None:
        by_token[: len(ids), layer, :] = ids

    ways: dict[str, Record] = {
        "in the graph: copy ids and weights in each layer": both,
        "in the graph: copy ids in each layer": ids_only,
        "in the graph: as vLLM's routed-experts capture stores ids": as_routed_experts,
    }
    try:
        from vllm.model_executor.layers.fused_moe.router.base_router import (  # noqa: PLC0415
            eplb_map_to_physical_and_record,
        )
    except ImportError:
        return ways
    load = torch.zeros(LAYERS, EXPERTS, dtype=torch.int32, device="cuda")
    logical = torch.arange(EXPERTS, device="cuda")[:, None].contiguous()
    replicas = torch.ones(EXPERTS, dtype=torch.int64, device="cuda")
    enabled = torch.ones((), dtype=torch.int32, device="cuda")

    def eplb(layer: int, ids: torch.Tensor, _: torch.Tensor) -> None:
        eplb_map_to_physical_and_record(
            topk_ids=ids, expert_load_view=load[layer], logical_to_physical_map=logical,
            logical_replica_count=replicas, record_enabled=enabled,
        )  # fmt: skip

    return {**ways, "in the graph: vLLM's EPLB kernel alone, in each layer": eplb}


def after_graph(routed: list[RoutingTensors]) -> dict[str, Callable[[], None]]:
    """Ways that count after the replay, from the tensors of the graph."""
    (group,) = group_by_shape(tuple(routed))
    table, launch = _addresses(group), _launch_of(group)
    pinned = torch.empty(LAYERS * EXPERTS, dtype=torch.int32, pin_memory=True)
    device = torch.empty(LAYERS * EXPERTS, dtype=torch.int32, device="cuda")

    def with_copy() -> None:
        histogram(launch, table, device, TOKENS)
        pinned.copy_(device, non_blocking=True)

    def check() -> None:
        counts = torch.stack([torch.bincount(tensors.ids.flatten(), minlength=EXPERTS) for tensors in routed])
        assert torch.equal(pinned.view(LAYERS, EXPERTS), counts.int().cpu())

    ways: dict[str, Callable[[], None]] = {
        "references held, nothing counted": lambda: None,
        "ours: one kernel into pinned memory": lambda: histogram(launch, table, pinned, TOKENS),
        "one kernel, then a copy": with_copy,
        "PyTorch's operations, a scatter a layer": lambda: torch_histogram(group, pinned, TOKENS),
    }
    for name, way in ways.items():
        if "held" not in name:
            pinned.fill_(-1)
            way()
            torch.cuda.synchronize()
            check()
    return ways


def main() -> None:
    """Measure and print."""
    model = Model()
    logits = torch.randn(TOKENS, 32000, device="cuda")
    routed: list[RoutingTensors] = []
    ways: dict[str, tuple[Any, Callable[[], None]]] = {
        "nothing": (model.captured(lambda *_: None), lambda: None),
        "nothing, again": (model.captured(lambda *_: None), lambda: None),
    }
    ways |= {name: (model.captured(record), lambda: None) for name, record in in_graph().items()}
    captured_graph = model.captured(
        lambda layer, ids, weights: routed.append(RoutingTensors(layer, EXPERTS, ids, weights))
    )
    del routed[:LAYERS]  # those of the run before the capture
    captured_graph.replay()
    ways |= {name: (captured_graph, way) for name, way in after_graph(routed).items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(BLOCKS):
        for name, (graph, way) in ways.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(STEPS):
                graph.replay()
                way()
                logits.argmax(-1)
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end) * 1000 / STEPS)
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__}))
    base = times["nothing"]
    for name, values in times.items():
        added = sorted(value - nothing for value, nothing in zip(values, base, strict=True))
        print(json.dumps({
            "way": name, "us_a_step": round(statistics.median(values), 2),
            "added_us": round(statistics.median(added), 2),
            "added_us_quartiles": [round(added[len(added) // 4], 2), round(added[-len(added) // 4], 2)],
            "added_pct": round(100 * statistics.median(added) / statistics.median(base), 3),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
