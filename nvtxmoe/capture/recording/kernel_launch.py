"""What launches the counting of a group of routing tensors on a GPU: Triton's kernels, or PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.logits_launch import LogitsLaunch
from nvtxmoe.capture.recording.routing_tensors import SameShapeTensors

if TYPE_CHECKING:
    import torch


#: Launches the counting of a group: (launch, table of addresses, int32 [layers x experts] pinned, tokens).
Histogram = Callable[[Launch, Any, Any, int], None]
#: The same for pairs: int32 [layers, experts, experts] on the device, added to.
Pairs = Histogram
#: Launches the recomputing of layers: (launch, table of addresses, int32 counts in pinned memory, tokens).
Recompute = Callable[[LogitsLaunch, Any, Any, int], None]


def best_kernels() -> tuple[Histogram | None, Pairs | None]:
    """The kernels, where this machine has Triton; None where PyTorch's own operations must do."""
    try:
        from nvtxmoe.capture.recording.triton_histogram import histogram  # noqa: PLC0415  Triton is optional
        from nvtxmoe.capture.recording.triton_pairs import pairs  # noqa: PLC0415
    except ImportError as error:
        logger().info("counting with PyTorch's own operations: %s", error)
        return None, None
    return histogram, pairs


def best_recompute() -> Recompute | None:
    """The kernel of recomputed layers, likewise."""
    try:
        from nvtxmoe.capture.recording.triton_recompute import recompute  # noqa: PLC0415  Triton is optional
    except ImportError as error:
        logger().info("recomputing with PyTorch's own operations: %s", error)
        return None
    return recompute


def torch_histogram(group: SameShapeTensors, out: torch.Tensor, num_tokens: int) -> None:
    """Count a group with PyTorch's operations: a scatter a layer and one copy. Experts out of range are left out."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        counts = torch.zeros(len(group.layers), group.experts, dtype=torch.int32, device=group.tensors[0][0].device)
        for row, (ids, start) in zip(counts, group.tensors, strict=True):
            chosen = ids[start : start + num_tokens].reshape(-1).to(torch.int64)
            inside = (chosen >= 0) & (chosen < group.experts)
            row.scatter_add_(0, chosen.clamp(0, group.experts - 1), inside.to(torch.int32))
        out.copy_(counts.view(-1), non_blocking=True)
