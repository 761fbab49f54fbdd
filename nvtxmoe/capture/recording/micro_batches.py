"""Steps that vLLM runs as micro-batches (dual batch overlap): each part is counted, and the parts are added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nvtxmoe.capture.recording.cpu_counter import Counter as StepCounter
from nvtxmoe.capture.recording.pair_counter import PairCounts
from nvtxmoe.capture.recording.router_logits import Routed
from nvtxmoe.capture.recording.routing_tensors import Cells, Sample, StepCounts
from nvtxmoe.capture.run_identity import Step


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step.

    Attributes:
        token_offset: the part's first token in the step.
        num_tokens: scheduled tokens in the part; padding behind them is not counted.
        routed: each layer once, the same layers in all parts of a step.
    """

    token_offset: int
    num_tokens: int
    routed: tuple[Routed, ...]


@dataclass(frozen=True)
class Divided:
    """A step's micro-batches.

    Attributes:
        parts: those that hold scheduled tokens, in the order of their tokens.
        incomplete: layers left out of all parts, because one part lacks them or has too few rows.
    """

    parts: tuple[MicroBatch, ...]
    incomplete: frozenset[int]


def divide(routed: Sequence[Routed], num_tokens: int) -> Divided:
    """Divide a step's routing by token offset.

    Parameters:
        routed: tensors of all layers and parts.
        num_tokens: scheduled tokens of the step; they come before its padding.
    """
    offsets = sorted({tensors.token_offset for tensors in routed})
    ends = [*offsets[1:], num_tokens]
    sizes = {offset: min(end, num_tokens) - offset for offset, end in zip(offsets, ends, strict=True)}
    sizes = {offset: size for offset, size in sizes.items() if size > 0}
    layers = {tensors.layer for tensors in routed}
    whole_cells = {
        (tensors.layer, tensors.token_offset)
        for tensors in routed
        if tensors.own_rows >= sizes.get(tensors.token_offset, 0)
    }
    complete = {
        layer for layer in layers if offsets[0] == 0 and all((layer, offset) in whole_cells for offset in sizes)
    }
    parts = tuple(
        MicroBatch(
            offset,
            size,
            tuple(tensors for tensors in routed if tensors.token_offset == offset and tensors.layer in complete),
        )
        for offset, size in sizes.items()
    )
    return Divided(parts if complete else (), frozenset(layers - complete))


class Together:
    """Adds the counts of a step's parts when all of them have arrived."""

    def __init__(self) -> None:
        self._expected: dict[int, tuple[Step, int]] = {}
        self._arrived: dict[int, list[StepCounts]] = {}
        self._unwanted: dict[int, int] = {}  # parts that still arrive of steps that are left out

    def submit(
        self,
        counter: StepCounter,
        step: Step,
        divided: Divided,
        sample: bool,
        key: Hashable | None,
        pairs: PairCounts | None,
    ) -> None:
        """Have each part counted. Where the counter drops one, the step is left out: a part would read as the step."""
        self._expected[step.number] = step, len(divided.parts)
        self._arrived[step.number] = []
        dropped = counter.dropped
        for place, part in enumerate(divided.parts):
            part_key = None if key is None or divided.incomplete else (key, part.token_offset)
            counter.submit(step._replace(num_tokens=part.num_tokens), part.routed, sample, part_key, pairs)
            if counter.dropped > dropped:
                del self._expected[step.number], self._arrived[step.number]
                if place:
                    self._unwanted[step.number] = place
                return

    def add(self, counted: StepCounts) -> StepCounts | None:
        """Return the whole step with its last part, None before; a step that is not divided as it is."""
        number = counted.step.number
        if number in self._unwanted:
            self._unwanted[number] -= 1
            if not self._unwanted[number]:
                del self._unwanted[number]
            return None
        if number not in self._expected:
            return counted
        step, parts = self._expected[number]
        arrived = self._arrived[number]
        arrived.append(_copied_counts(counted))
        if len(arrived) != parts:
            return None
        del self._expected[number], self._arrived[number]
        return _added(step, arrived)


def _copied_counts(counted: StepCounts) -> StepCounts:
    """A copy: the counter uses the memory of counts again when the next step is asked for."""
    return counted._replace(cells=tuple(replace(cells, counts=cells.counts.copy()) for cells in counted.cells))


def _added(step: Step, parts: Sequence[StepCounts]) -> StepCounts:
    rows = {
        (place, layer, cells.physical): row
        for place, part in enumerate(parts)
        for cells in part.cells
        for layer, row in zip(cells.layers, cells.counts, strict=True)
    }
    cells = tuple(
        Cells(
            cells.layers,
            cells.top_k,
            np.stack(
                [sum(rows[place, layer, cells.physical] for place in range(len(parts))) for layer in cells.layers]
            ),
            cells.physical,
        )
        for cells in parts[0].cells
    )
    samples = tuple(
        _joined([next(s for s in part.samples if s.layer == first.layer) for part in parts])
        for first in parts[0].samples
    )
    ambiguous: Counter[int] = Counter()
    for part in parts:
        ambiguous.update(dict(part.ambiguous))
    return StepCounts(step, cells, samples, tuple(ambiguous.items()))


def _joined(samples: Sequence[Sample]) -> Sample:
    known = [sample.weights for sample in samples if sample.weights is not None]
    return Sample(
        samples[0].layer,
        np.concatenate([sample.experts for sample in samples]),
        np.concatenate(known) if len(known) == len(samples) else None,
    )
