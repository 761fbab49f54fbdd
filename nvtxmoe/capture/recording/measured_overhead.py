"""Measured cost of recording per set-up (docs/development/benchmarks-recording.md); moe.meta holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvtxmoe.capture.run_identity import LayerInfo

NOT_MEASURED = "not measured for this set-up"  # no path: trim takes those out

#: (device, vllm, layers, experts, top_k) -> figures of scripts/bench/overhead.py, batch 32 decoding, full CUDA graphs.
MEASURED: Mapping[tuple[str, str, int, int, int], Mapping[str, Any]] = {
    ("NVIDIA H100 80GB HBM3", "0.26.0", 48, 128, 8): {
        "gpu_us_a_step": 27.4,
        "gpu_us_a_step_ci95": [22.3, 31.6],
        "gpu_pct": 0.13,
        "cpu_us_a_step": 194,
        "measured": "batch 32 decoding, full CUDA graphs, counts alone, no nsys",
    },
    ("NVIDIA H200", "0.33.0", 48, 128, 8): {
        "gpu_us_a_step": 11.6,
        "gpu_us_a_step_ci95": [3.8, 17.9],
        "gpu_pct": 0.075,
        "cpu_us_a_step": 98,
        "measured": "batch 32 decoding, full CUDA graphs, counts alone, no nsys; other tests ran on another GPU",
    },
}


def overhead(device: str, vllm: str, layers: Sequence[LayerInfo]) -> Mapping[str, Any] | str:
    """The figures for a set-up, or ``NOT_MEASURED``."""
    shapes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(shapes) != 1:
        return NOT_MEASURED
    ((experts, top_k),) = shapes
    return MEASURED.get((device, vllm, len(layers), experts, top_k), NOT_MEASURED)
