"""The kernel of exact pairs: which experts a token chose together, added up in a square a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

    from nvtxmoe.capture.recording.launch import Launch

#: Pairs that a program takes at a time, and programs a layer.
BLOCK = 1024
PROGRAMS = 4


@triton.jit(do_not_specialize=["num_rows", "row_stride"])  # type: ignore[untyped-decorator]
def nvtxmoe_pairs(  # type: ignore[no-untyped-def]
    table,
    out,
    num_rows,
    row_stride,
    top_k: tl.constexpr,
    width: tl.constexpr,
    experts: tl.constexpr,
    item_bytes: tl.constexpr,
    block: tl.constexpr,
):
    """Some programs a layer; ``width`` is the power of two that has room for top_k."""
    layer = tl.program_id(0)
    address = tl.load(table + layer)
    if item_bytes == 8:
        ids = address.to(tl.pointer_type(tl.int64))
    elif item_bytes == 4:
        ids = address.to(tl.pointer_type(tl.int32))
    else:
        ids = address.to(tl.pointer_type(tl.int16))
    total = num_rows * width * width
    for first in range(tl.program_id(1) * block, total, tl.num_programs(1) * block):
        at = first + tl.arange(0, block)
        row = at // (width * width)
        left, other = (at // width) % width, at % width
        pair = (at < total) & (left < other) & (other < top_k)
        first_id = tl.load(ids + row * row_stride + left, mask=pair, other=experts).to(tl.int32)
        more = tl.load(ids + row * row_stride + other, mask=pair, other=experts).to(tl.int32)
        low, high = tl.minimum(first_id, more), tl.maximum(first_id, more)
        pair = pair & (low >= 0) & (high < experts) & (low != high)
        tl.atomic_add(out + (layer * experts + low) * experts + high, 1, mask=pair)


def pairs(launch: Launch, table: torch.Tensor, squares: torch.Tensor, num_tokens: int) -> None:
    """Enqueue the counting of a group's pairs; a router chooses an expert once a token.

    Parameters:
        table: int64 [layers], addresses of the first own rows, in pinned memory.
        squares: int32 [layers, experts, experts] on the device; the upper triangles are added to.
    """
    prepared = launch.prepared.get("pairs")
    if prepared is None:
        width = triton.next_power_of_2(launch.top_k)
        trailing_arguments = (launch.row_stride, launch.top_k, width, launch.experts, launch.item_bytes, BLOCK)
        layers = len(launch.layers)
        compiled = nvtxmoe_pairs[(layers, PROGRAMS)](table, squares, num_tokens, *trailing_arguments, num_warps=4)
        launch.prepared["pairs"] = compiled[(layers, PROGRAMS, 1)], trailing_arguments
        return
    run, trailing_arguments = prepared
    run(table, squares, num_tokens, *trailing_arguments)
