"""The counting kernel: one program a layer, all its tokens, no zeroing, no copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from nvtxmoe.capture.recording.direct_launch import Prepared

if TYPE_CHECKING:
    import torch

    from nvtxmoe.capture.recording.launch import Launch

#: Assignments that a program takes at a time.
BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows", "row_stride"])  # type: ignore[untyped-decorator]
def nvtxmoe_count(  # type: ignore[no-untyped-def]
    table,
    out,
    num_rows,
    row_stride,
    top_k: tl.constexpr,
    experts: tl.constexpr,
    bins: tl.constexpr,
    item_bytes: tl.constexpr,
    block: tl.constexpr,
):
    """A program a layer; its name is what nsys shows."""
    layer = tl.program_id(0)
    address = tl.load(table + layer)
    if item_bytes == 8:
        ids = address.to(tl.pointer_type(tl.int64))
    elif item_bytes == 4:
        ids = address.to(tl.pointer_type(tl.int32))
    else:  # what vLLM's sinks of monolithic kernels hold
        ids = address.to(tl.pointer_type(tl.int16))
    total = num_rows * top_k
    counts = tl.zeros([bins], dtype=tl.int32)
    for first in range(0, total, block):
        at = first + tl.arange(0, block)
        place = (at // top_k) * row_stride + at % top_k
        chosen = tl.load(ids + place, mask=at < total, other=experts).to(tl.int32)
        chosen = tl.where((chosen >= 0) & (chosen < experts), chosen, experts)  # the bin past the last: not counted
        counts += tl.histogram(chosen, bins)
    expert = tl.arange(0, bins)
    tl.store(out + layer * experts + expert, counts, mask=expert < experts)


def histogram(launch: Launch, table: torch.Tensor, out: torch.Tensor, num_tokens: int) -> None:
    """Enqueue the counting of a group.

    Parameters:
        table: int64 [layers], addresses of the first own rows, in pinned memory.
        out: int32 [layers x experts], pinned memory, aligned to 16 bytes.
    """
    prepared = launch.prepared.get("count")
    if prepared is None:
        bins = triton.next_power_of_2(launch.experts + 1)
        trailing_arguments = (launch.row_stride, launch.top_k, launch.experts, bins, launch.item_bytes, BLOCK)
        layers = len(launch.layers)
        compiled = nvtxmoe_count[(layers,)](table, out, num_tokens, *trailing_arguments, num_warps=4)
        # Launching the compiled kernel spares Triton's look at the arguments, which is the same for each ``out``.
        launch.prepared["count"] = Prepared(compiled, (layers, 1, 1), trailing_arguments)
        return
    prepared(launch.device, table, out, num_tokens)
