"""From routing tensors to counts, at once, on the CPU. ``cuda_counting`` does it on a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nvtxmoe.capture.recording.pair_counter import PairCounts
from nvtxmoe.capture.recording.router_logits import Routed, RouterLogits, only_ids
from nvtxmoe.capture.recording.routing_tensors import (
    Cells,
    RoutingTensors,
    SameShapeTensors,
    Sample,
    StepCounts,
    group_by_shape,
)
from nvtxmoe.capture.run_identity import Step

if TYPE_CHECKING:
    import torch


class Counter(Protocol):
    """Turns routing into counts, in the order of the steps."""

    #: Steps that had to be left out, the device being too far behind.
    dropped: int
    #: Whether counts arrive some time after ``submit``.
    arrives_later: bool

    def submit(
        self,
        step: Step,
        routed: tuple[Routed, ...],
        sample: bool,
        key: Hashable | None = None,
        pairs: PairCounts | None = None,
    ) -> None:
        """Begin to count a step. Every tensor has at least ``start + num_tokens`` rows.

        ``key`` stands for these very tensors, which will come again; None for tensors that won't. ``pairs`` gets the
        step's pairs.
        """

    def drain(self, wait: bool = False) -> Iterator[StepCounts]:
        """Steps that are counted by now; with ``wait`` all of them."""

    def oldest(self) -> int | None:
        """Number of the first step that ``drain`` has not given; None where there is none."""

    def enter_thread(self) -> bool:
        """Prepare the calling thread, which is not the serving one, for ``drain``; False where it is too early."""


class CpuCounter:
    """Counts CPU tensors when they are submitted."""

    arrives_later = False

    def __init__(self) -> None:
        self.dropped = 0
        self._done: deque[StepCounts] = deque()

    def submit(
        self,
        step: Step,
        routed: tuple[Routed, ...],
        sample: bool,
        key: Hashable | None = None,  # noqa: ARG002
        pairs: PairCounts | None = None,
    ) -> None:
        """Count now.

        Raises:
            ValueError: an expert out of range.
        """
        ids = list(only_ids(routed))
        ambiguous: list[tuple[int, int]] = []
        for tensors in routed:
            if isinstance(tensors, RouterLogits):
                chosen = tensors.chosen(step.num_tokens)
                ids.append(RoutingTensors(tensors.layer, tensors.num_experts, chosen.ids, chosen.weights))
                ambiguous.append((tensors.layer, int(chosen.ambiguous.sum())))
        cells = tuple(_cells(group, step.num_tokens) for group in group_by_shape(tuple(ids)))
        samples = tuple(_sample(tensors, step.num_tokens) for tensors in ids) if sample else ()
        self._done.append(StepCounts(step, cells, samples, tuple(ambiguous)))
        if pairs is not None:
            pairs.add(step, tuple(ids))

    def drain(self, wait: bool = False) -> Iterator[StepCounts]:  # noqa: ARG002  nothing to wait for
        """All that was submitted."""
        while self._done:
            yield self._done.popleft()

    def oldest(self) -> int | None:
        """Number of the first step that is not drained."""
        return self._done[0].step.number if self._done else None

    def enter_thread(self) -> bool:
        """Nothing to prepare."""
        return True


def _cells(group: SameShapeTensors, num_tokens: int) -> Cells:
    counts = np.zeros((len(group.layers), group.experts), dtype=np.int64)
    for place, (ids, start) in enumerate(group.tensors):
        chosen = np.bincount(ids[start : start + num_tokens].numpy().ravel(), minlength=group.experts)
        if len(chosen) > group.experts:
            raise ValueError(f"layer {group.layers[place]}: a router chose expert {len(chosen) - 1} of {group.experts}")
        counts[place] = chosen
    return Cells(group.layers, group.top_k, counts, group.physical)


def _sample(tensors: RoutingTensors, num_tokens: int) -> Sample:
    rows = slice(tensors.start, tensors.start + num_tokens)

    def copied(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        return np.array(tensor[rows].numpy())

    return Sample(
        tensors.layer, copied(tensors.ids), None if tensors.weights is None else copied(tensors.weights.float())
    )
