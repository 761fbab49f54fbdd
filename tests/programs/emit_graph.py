"""A small mixture of experts on a GPU, under CUDA graphs, that emits schema 1 with binary payloads.

For a machine with a GPU, PyTorch and nvtx >= 0.2.15; run under ``nsys profile -t cuda,nvtx --cuda-graph-trace=node``.
Four layers of 16 experts, top-2, are captured into one graph with their ranges; one step in five runs eagerly. Prints
the counts it emitted, as JSON: what ``nvtxmoe analyze`` must find again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import nvtx
import torch

from nvtxmoe.formats import schema

LAYERS, EXPERTS, TOP_K, HIDDEN, TOKENS = 4, 16, 2, 256, 32
STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
SAMPLE_EVERY = 10

domain = nvtx.get_domain(schema.DOMAIN)


def attributes(name: str, category: str, payload: Any = None) -> Any:
    """Event attributes in our domain."""
    return domain.get_event_attributes(message=name, category=category, payload=payload)


@contextmanager
def pushed(name: str, category: str, payload: Any) -> Iterator[None]:
    """A push/pop range."""
    domain.push_range(attributes(name, category, payload))
    try:
        yield
    finally:
        domain.pop_range()


def mark(name: str, category: str, payload: Any) -> None:
    """A mark."""
    domain.mark(attributes(name, category, payload))


class Layer(torch.nn.Module):  # type: ignore[misc]
    """A gate and dense experts; routing is kept for the counts."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.up = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN, HIDDEN) / HIDDEN)
        self.ids = torch.zeros(TOKENS, TOP_K, dtype=torch.int64, device="cuda")
        self.weights = torch.zeros(TOKENS, TOP_K, device="cuda")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Route, run the experts, combine."""
        with pushed(f"{schema.LAYER_PREFIX}{self.number}", "layer", self.number):
            scores = self.gate(x).softmax(-1)
            with pushed("moe.route", "phase", self.number):
                weights, ids = scores.topk(TOP_K)
                self.ids.copy_(ids)
                self.weights.copy_(weights)
            with pushed("moe.experts", "phase", self.number):
                y = torch.einsum("th,ehk->tek", x, self.up)
                y = y.gather(1, ids[..., None].expand(-1, -1, HIDDEN))
            with pushed("moe.combine", "phase", self.number):
                return x + (y * weights[..., None]).sum(1)


def meta() -> np.ndarray[Any, Any]:
    """Payload of moe.meta."""
    said = {
        "schema": schema.SCHEMA,
        "nvtxmoe": "test",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "rank": 0,
        "world_size": 1,
        "tp_rank": 0,
        "tp_size": 1,
        "sample_every": SAMPLE_EVERY,
        "layers": [{"layer": n, "num_experts": EXPERTS, "top_k": TOP_K} for n in range(LAYERS)],
    }
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def emit_counts(step: int, layers: list[Layer], totals: np.ndarray[Any, Any]) -> None:
    """moe.counts of every layer, and moe.topk on sampled steps."""
    for layer in layers:
        ids, weights = layer.ids.cpu().numpy(), layer.weights.cpu().numpy()
        counts = np.bincount(ids.ravel(), minlength=EXPERTS)
        totals[layer.number] += counts
        payload = np.array((step, layer.number, 0, TOKENS, TOP_K, counts), dtype=schema.counts_dtype(EXPERTS))
        mark(schema.COUNTS, "counts", payload)
        if step % SAMPLE_EVERY == 0:
            rows = [(step, layer.number, t, ids[t], weights[t]) for t in range(TOKENS)]
            mark(schema.TOPK, "topk", np.array(rows, dtype=schema.topk_dtype(TOP_K)))


def main() -> None:
    """Capture a graph, replay it, print the totals."""
    torch.manual_seed(0)
    layers = [Layer(n).cuda() for n in range(LAYERS)]
    model = torch.nn.Sequential(*layers)
    x = torch.randn(TOKENS, HIDDEN, device="cuda")
    mark(schema.META, "meta", meta())
    totals = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    with torch.inference_mode():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        for step in range(STEPS):
            x.copy_(torch.randn(TOKENS, HIDDEN, device="cuda"))
            payload = np.array((step, 0, TOKENS, 1, 0, TOKENS, 0), dtype=schema.STEP_DTYPE)
            with pushed(schema.STEP, "step", payload):
                if step % 5 == 0:
                    model(x)
                else:
                    graph.replay()
            torch.cuda.synchronize()
            emit_counts(step, layers, totals)
    print(json.dumps({"steps": STEPS, "counts": totals.tolist()}))


if __name__ == "__main__":
    main()
