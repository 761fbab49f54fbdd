"""Compares the kernel that recomputes experts, under Triton's interpreter, with PyTorch's operations; prints JSON.

    TRITON_INTERPRET=1 python tests/programs/recompute_kernel.py

A line per rule: how many counts and ambiguous tokens differ, and how many there are.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from nvtxmoe.capture.recording.logits_launch import addresses, fits_kernel, launch_of, torch_recompute
from nvtxmoe.capture.recording.router_logits import RouterLogits, alike_logits
from nvtxmoe.capture.recording.routing_rule import RoutingRule
from nvtxmoe.capture.recording.triton_recompute import recompute

LAYERS, TOKENS, FIRST = 2, 37, 3
#: Name, dtype, experts, top_k, rule, bias.
CASES = (
    ("softmax of a few", torch.float32, 8, 2, RoutingRule(), False),
    ("all experts", torch.float32, 8, 8, RoutingRule(), False),
    ("the best bfloat16 logits", torch.bfloat16, 128, 4, RoutingRule(exact=True), False),
    ("float16, no power of two", torch.float16, 60, 4, RoutingRule(), False),
    ("sigmoid", torch.float32, 64, 6, RoutingRule("sigmoid"), False),
    ("softmax and bias", torch.float32, 32, 4, RoutingRule("softmax"), True),
    ("sqrtsoftplus and bias", torch.float32, 64, 6, RoutingRule("sqrtsoftplus"), True),
    ("groups of sigmoid and bias", torch.float32, 32, 4, RoutingRule("sigmoid", groups=4, top_groups=2), True),
    ("groups of softmax, no power of two", torch.float32, 20, 3, RoutingRule(groups=5, top_groups=3), False),
)


def compared(dtype: Any, experts: int, top_k: int, rule: RoutingRule, biased: bool, parts: int) -> dict[str, int]:
    """Counts of both ways for some layers, each with logits further apart than their width."""
    chance = torch.Generator().manual_seed(experts)
    members = []
    for layer in range(LAYERS):
        logits = (2 * torch.randn(TOKENS + 9, experts + 4, generator=chance)).to(dtype)
        logits[FIRST + 1, :experts] = 1.0  # all equal
        logits[FIRST + 2, 0] = float("nan")
        bias = torch.randn(experts, generator=chance) * 0.3 if biased else None
        members.append(RouterLogits(layer, experts, top_k, logits[:, :experts], rule, bias, start=FIRST))
    (group,) = alike_logits(members)
    assert fits_kernel(group)
    launch = launch_of(group)
    launch.parts = parts
    ours = torch.full((LAYERS, parts, experts + 1), -1, dtype=torch.int32)
    recompute(launch, addresses(group), ours, TOKENS)
    ours = ours.sum(dim=1)
    theirs = torch.zeros(LAYERS * (experts + 1), dtype=torch.int32)
    torch_recompute(group, theirs, TOKENS)
    differing = ours != theirs.view(LAYERS, experts + 1)
    return {
        "differing": int(differing.sum()),
        "assignments": int(ours[:, :-1].sum()),
        "ambiguous": int(ours[:, -1].sum()),
    }


def main() -> None:
    """Print a line per rule."""
    empty = torch.empty

    def pageable(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return empty(*args, **more)

    torch.empty = pageable
    for at, (name, dtype, experts, top_k, rule, biased) in enumerate(CASES):
        found = compared(dtype, experts, top_k, rule, biased, parts=1 + at % 2)
        print(json.dumps({"name": name, "top_k": top_k, **found}), flush=True)


if __name__ == "__main__":
    main()
