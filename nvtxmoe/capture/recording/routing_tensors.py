"""Routing of a step: as tensors that nobody has looked at yet, and as counts that have arrived."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy.typing as npt

from nvtxmoe.capture.run_identity import Step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RoutingTensors:
    """What a router chose, by reference: the memory stays as it was while this is held.

    Attributes:
        ids: logical experts, [rows, top_k], any integer dtype; rows past the step's tokens are padding.
        weights: [rows, top_k], floating; None where they are not known.
        physical: physical experts, as ids; None without EPLB.
        start: the first row that is this rank's (data parallelism may put all ranks' rows together).
        token_offset: the step's token in that row, 0 unless the step runs as micro-batches.
        lives_on: whether the ids' memory is another's, which keeps it in any case.
    """

    layer: int
    num_experts: int
    ids: torch.Tensor
    weights: torch.Tensor | None
    physical: torch.Tensor | None = None
    num_physical: int = 0
    start: int = 0
    token_offset: int = 0
    lives_on: bool = False

    @property
    def held_bytes(self) -> int:
        """Memory that this keeps from being used again."""
        tensors = (None if self.lives_on else self.ids, self.weights, self.physical)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @property
    def own_rows(self) -> int:
        """Rows from the first own one on."""
        return int(self.ids.shape[0]) - self.start

    @property
    def is_cuda(self) -> bool:
        """Whether a GPU has it."""
        return bool(self.ids.is_cuda)

    def without_weights(self) -> RoutingTensors:
        """The same with the weights let go."""
        return self if self.weights is None else replace(self, weights=None)


@dataclass(frozen=True)
class Cells:
    """Counts of layers that are alike, in one step.

    Attributes:
        layers: their numbers.
        counts: integers [layers, experts].
        physical: whether the experts are physical ones.
    """

    layers: tuple[int, ...]
    top_k: int
    counts: npt.NDArray[Any]
    physical: bool = False


@dataclass(frozen=True)
class Sample:
    """The tokens of one layer in a sampled step: [num_tokens, top_k] both."""

    layer: int
    experts: npt.NDArray[Any]
    weights: npt.NDArray[Any] | None


class StepCounts(NamedTuple):
    """A step whose counts have arrived.

    Attributes:
        ambiguous: (layer, tokens whose last expert rounding decides) of each layer that was recomputed, 0 included.
    """

    step: Step
    cells: tuple[Cells, ...]
    samples: tuple[Sample, ...] = ()
    ambiguous: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class SameShapeTensors:
    """Routing tensors of one shape, counted together.

    Attributes:
        tensors: [rows, top_k] each, with the first own row.
    """

    layers: tuple[int, ...]
    experts: int
    top_k: int
    physical: bool
    tensors: tuple[tuple[torch.Tensor, int], ...]


def group_by_shape(routed: tuple[RoutingTensors, ...]) -> tuple[SameShapeTensors, ...]:
    """Tensors by their number of experts, top_k, dtype, strides and device; logical and physical ids apart."""
    groups: dict[tuple[Any, ...], list[tuple[int, torch.Tensor, int]]] = {}
    for tensors in routed:
        for ids, experts, physical in (
            (tensors.ids, tensors.num_experts, False),
            (tensors.physical, tensors.num_physical, True),
        ):
            if ids is not None:
                key = (experts, ids.shape[1], physical, ids.dtype, ids.stride(), ids.device)
                groups.setdefault(key, []).append((tensors.layer, ids, tensors.start))
    return tuple(
        SameShapeTensors(
            layers=tuple(layer for layer, _, _ in members),
            experts=key[0],
            top_k=key[1],
            physical=key[2],
            tensors=tuple((ids, start) for _, ids, start in members),
        )
        for key, members in groups.items()
    )
