"""One layer's routing of one step, as tensors that nobody has looked at yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.model import Step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Routed:
    """What a router chose, by reference: the memory stays as it was while this is held.

    Attributes:
        ids: logical experts, [rows, top_k], any integer dtype; rows past the step's tokens are padding.
        weights: [rows, top_k], floating.
        physical: physical experts, as ids; None without EPLB.
        start: the first row that is this rank's (data parallelism may put all ranks' rows together).
    """

    layer: int
    num_experts: int
    ids: torch.Tensor
    weights: torch.Tensor | None
    physical: torch.Tensor | None = None
    num_physical: int = 0
    start: int = 0


@dataclass(frozen=True)
class Cell:
    """The counts of one (step, layer).

    Attributes:
        counts: int64 [experts].
        physical: int64 [physical experts], or None.
        experts, weights: [num_tokens, top_k] on sampled steps, else None.
    """

    layer: int
    num_tokens: int
    top_k: int
    counts: npt.NDArray[np.int64]
    physical: npt.NDArray[np.int64] | None = None
    experts: npt.NDArray[Any] | None = None
    weights: npt.NDArray[Any] | None = None


@dataclass(frozen=True)
class Counted:
    """A step whose counts have arrived."""

    step: Step
    cells: tuple[Cell, ...]
