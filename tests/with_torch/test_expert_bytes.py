"""Bytes of an expert, from the parameters of a layer's experts."""

from __future__ import annotations

import pytest
import torch

from nvtxmoe.capture.vllm.identity import _expert_bytes

EXPERTS = 4


def layer(**shapes: tuple[torch.dtype, int]) -> torch.nn.Module:
    """Experts with parameters of so many elements per expert."""
    made = torch.nn.Module()
    for name, (dtype, elements) in shapes.items():
        tensor = torch.zeros(EXPERTS, elements).to(dtype)
        made.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return made


@pytest.mark.parametrize(
    ("shapes", "size_bytes"),
    [
        ({"w13_weight": (torch.bfloat16, 6), "w2_weight": (torch.bfloat16, 3)}, 18),
        ({"w13_weight": (torch.uint8, 6), "w2_weight": (torch.uint8, 3), "w13_weight_scale": (torch.uint8, 1)}, 10),
        ({"w13_qweight": (torch.int32, 6), "w2_qweight": (torch.int32, 3), "w13_bias": (torch.float32, 2)}, 44),
        # triton_kernels keeps the weights in objects of its own: biases are not an expert.
        ({"w13_bias": (torch.float32, 6), "w2_bias": (torch.float32, 3)}, None),
        ({"w13_weight_scale": (torch.uint8, 6), "w2_weight_scale": (torch.uint8, 3)}, None),
        ({"w13_weight": (torch.bfloat16, 6), "w2_bias": (torch.bfloat16, 3)}, None),
        ({}, None),
    ],
)
def test_what_is_an_expert(shapes: dict[str, tuple[torch.dtype, int]], size_bytes: int | None) -> None:
    assert _expert_bytes(layer(**shapes), EXPERTS) == size_bytes
