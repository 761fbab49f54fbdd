"""The counting kernel: one program a layer, all its tokens, no zeroing, no copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

    from nvtxmoe.capture.cuda_counting import Launch

#: Assignments that a program takes at a time.
BLOCK = 1024
#: Compiled kernels by what they are specialised for. Launching one spares Triton's look at the arguments.
_compiled: dict[tuple[Any, ...], Any] = {}


@triton.jit(do_not_specialize=["num_rows", "row_stride"])  # type: ignore[untyped-decorator]
def nvtxmoe_count(  # type: ignore[no-untyped-def]
    table,
    out,
    num_rows,
    row_stride,
    top_k: tl.constexpr,
    experts: tl.constexpr,
    bins: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    """A program a layer; its name is what nsys shows."""
    layer = tl.program_id(0)
    address = tl.load(table + layer)
    ids = address.to(tl.pointer_type(tl.int64)) if wide else address.to(tl.pointer_type(tl.int32))
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
        out: int32 [layers x experts], pinned memory.
    """
    wide = launch.item_bytes == 8
    bins = triton.next_power_of_2(launch.experts + 1)
    args = (table, out, num_tokens, launch.row_stride, launch.top_k, launch.experts, bins, wide, BLOCK)
    key = (launch.top_k, launch.experts, wide, out.data_ptr() % 16, table.data_ptr() % 16, launch.device)
    compiled = _compiled.get(key)
    if compiled is None:
        _compiled[key] = nvtxmoe_count[(len(launch.layers),)](*args, num_warps=4)
    else:
        compiled[(len(launch.layers), 1, 1)](*args)
