"""What launches the counting of a group of routing tensors on a GPU: Triton's kernels, or PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.routed import Alike

if TYPE_CHECKING:
    import torch


@dataclass
class Launch:
    """What the kernel has to know of a group of tensors; their addresses are in the table.

    Attributes:
        row_stride: elements from one token's row to the next.
        item_bytes: of an id, 4 or 8.
        prepared: what the launcher keeps for the next launch.
    """

    layers: tuple[int, ...]
    experts: int
    top_k: int
    physical: bool
    row_stride: int
    item_bytes: int
    device: torch.device
    prepared: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the counts that come out."""
        return len(self.layers), self.experts


#: Launches the counting of a group: (launch, table of addresses, int32 [layers x experts] pinned, tokens).
Histogram = Callable[[Launch, Any, Any, int], None]
#: The same for pairs: int32 [layers, experts, experts] on the device, added to.
Pairs = Histogram


def best_kernels() -> tuple[Histogram | None, Pairs | None]:
    """The kernels, where this machine has Triton; None where PyTorch's own operations must do."""
    try:
        from nvtxmoe.capture.triton_histogram import histogram  # noqa: PLC0415  Triton is optional
        from nvtxmoe.capture.triton_pairs import pairs  # noqa: PLC0415
    except ImportError as error:
        logger().info("counting with PyTorch's own operations: %s", error)
        return None, None
    return histogram, pairs


def torch_histogram(group: Alike, out: torch.Tensor, num_tokens: int) -> None:
    """Count a group with PyTorch's operations: a scatter a layer and one copy. Experts out of range are left out."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        counts = torch.zeros(len(group.layers), group.experts, dtype=torch.int32, device=group.tensors[0][0].device)
        for row, (ids, start) in zip(counts, group.tensors, strict=True):
            chosen = ids[start : start + num_tokens].reshape(-1).to(torch.int64)
            inside = (chosen >= 0) & (chosen < group.experts)
            row.scatter_add_(0, chosen.clamp(0, group.experts - 1), inside.to(torch.int32))
        out.copy_(counts.view(-1), non_blocking=True)
