"""Makes events of the counts of a step, and gives them to the sinks that take the step."""

from __future__ import annotations

from collections.abc import Collection

from nvtxmoe.capture.recording.ambiguous_tokens import AmbiguousTokens
from nvtxmoe.capture.recording.prepared_rows import RowsByShape
from nvtxmoe.capture.recording.routing_tensors import StepCounts
from nvtxmoe.capture.recording.topk_rows import topk_rows
from nvtxmoe.capture.recording.windows import EveryStep
from nvtxmoe.formats import schema


class StepEvents:
    """Sends ``moe.counts``, ``moe.physical`` and ``moe.topk``.

    Parameters:
        emit: of ``settings.EMITS``.

    Attributes:
        ambiguous: totals of the steps that were recorded; a window begins anew.
    """

    def __init__(self, emit: Collection[str]) -> None:
        self.ambiguous = AmbiguousTokens()
        self._emitted_events = {f"moe.{event}" for event in emit} & {schema.COUNTS, schema.PHYSICAL}
        self._prepared = RowsByShape()

    def send(self, counted: StepCounts, recorded: EveryStep) -> None:
        """Send what was counted in a step."""
        step = counted.step
        takers = recorded.of(step.number)
        for cells in counted.cells:
            event = schema.PHYSICAL if cells.physical else schema.COUNTS
            if event in self._emitted_events:
                rows = self._prepared.of(cells).filled(step, cells.counts)
                for sink in takers:
                    sink.payloads(event, rows)
        if recorded.takes(step.number):
            self.ambiguous.add(counted)
        for sample in counted.samples:
            payload = topk_rows(step.number, sample)
            for sink in takers:
                sink.payload(schema.TOPK, payload)
