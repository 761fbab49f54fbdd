"""Runs the counting kernels under Triton's interpreter with flags behind their counts; prints JSON.

    TRITON_INTERPRET=1 python tests/programs/arrival_flags.py

A line per launch: its counts' sum per layer, and the memory behind the counts, of which UNTOUCHED was there before.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.logits_launch import addresses, launch_of
from nvtxmoe.capture.recording.router_logits import RouterLogits, alike_logits
from nvtxmoe.capture.recording.routing_rule import RoutingRule
from nvtxmoe.capture.recording.triton_histogram import histogram
from nvtxmoe.capture.recording.triton_recompute import recompute

LAYERS, TOKENS, TOP_K, UNTOUCHED, BEHIND = 3, 5, 2, -7, 16


def printed(name: str, launch: Any, kernel: Any, table: torch.Tensor, counts: int) -> None:
    """Launch with and without flags."""
    for launch.flagged in (False, True):
        memory = torch.full((counts + BEHIND,), UNTOUCHED, dtype=torch.int32)
        kernel(launch, table, memory, TOKENS)
        total = int(memory[:counts].sum())
        print(json.dumps({"name": name, "flagged": launch.flagged, "total": total, "behind": memory[counts:].tolist()}))


def main() -> None:
    """Print a line per launch."""
    empty = torch.empty

    def pageable(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return empty(*args, **more)

    torch.empty = pageable
    for experts in (8, 7):  # 24 counts, and 21, which leave room up to the next multiple of 4
        ids = torch.arange(LAYERS * TOKENS * TOP_K, dtype=torch.int32).remainder_(experts).view(LAYERS, TOKENS, TOP_K)
        table = torch.tensor([layer.data_ptr() for layer in ids], dtype=torch.int64)
        launch = Launch(tuple(range(LAYERS)), experts, TOP_K, False, TOP_K, 4, torch.device("cpu"))
        printed(f"count {experts}", launch, histogram, table, LAYERS * experts)
        logits = torch.randn(LAYERS, TOKENS, experts, generator=torch.Generator().manual_seed(1))
        (group,) = alike_logits(
            [RouterLogits(n, experts, TOP_K, one, RoutingRule(), None) for n, one in enumerate(logits)]
        )
        recomputed = launch_of(group)
        recomputed.parts = 2
        printed(f"recompute {experts}", recomputed, recompute, addresses(group), LAYERS * 2 * (experts + 1))


if __name__ == "__main__":
    main()
