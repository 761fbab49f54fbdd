"""A launch of a counting kernel, prepared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Launch:
    """What the kernel has to know of a group of tensors; their addresses are in the table.

    Attributes:
        row_stride: elements from one token's row to the next.
        item_bytes: of an id, 2, 4 or 8.
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
    def counted(self) -> tuple[tuple[int, ...], int, int, bool]:
        """What its counts are of: layers, experts, top_k, and whether the experts are physical ones."""
        return self.layers, self.experts, self.top_k, self.physical

    @property
    def shape(self) -> tuple[int, int]:
        """Of the counts that come out."""
        return len(self.layers), self.experts
