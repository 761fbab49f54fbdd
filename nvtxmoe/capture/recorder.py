"""The recorder: what routers chose in a step becomes events of schema 1, in one or two sinks.

It knows nothing of vLLM. A step is ``begin_step``, any number of ``routed``, ``forward_done``, ``end_step``; what comes
outside of a step (warm-up, graph capture, idle batches) is not counted.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nvtxmoe import schema
from nvtxmoe.capture.counting import Counter, CpuCounter, DeviceCounter
from nvtxmoe.capture.hooks import failures
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.model import Identity, Step, meta_text
from nvtxmoe.capture.pairs import PairCounts
from nvtxmoe.capture.routed import Cell, Counted, Routed
from nvtxmoe.capture.sinks import Sink

if TYPE_CHECKING:
    pass

#: Steps after which moe.meta is sent again, for captures that begin later.
META_EVERY = 500


class Recorder:
    """Records one process.

    Parameters:
        sample_every: token-level rows on every so many steps, 0 for never.
        layers: numbers to record; None for all.
        emit: of ``config.EMITS``.
        sinks: made when the identity is known, since journals are named by rank.
    """

    def __init__(
        self,
        make_sinks: Callable[[Identity], Sequence[Sink]],
        *,
        sample_every: int = 100,
        layers: frozenset[int] | None = None,
        emit: frozenset[str] = frozenset({"counts", "topk", "physical"}),
        recording: str = "references, counted after the forward",
    ) -> None:
        self.identity: Identity | None = None
        self.recording = recording
        self.hidden: dict[int, str] = {}
        self.lost: Tally[str] = Tally()
        self.steps = 0
        self._make_sinks = make_sinks
        self._sinks: Sequence[Sink] = ()
        self._sample_every = sample_every
        self._layers = layers
        self._emit = emit
        self._step: Step | None = None
        self._routed: dict[int, Routed] | None = None  # while a forward runs
        self._open = False
        self._counter: Counter | None = None
        self._pairs = PairCounts() if "pairs" in emit else None
        self._told: object = None

    # The process -------------------------------------------------------------------------------------------------

    def model_loaded(self, identity: Identity) -> None:
        """The layers are known. A second call replaces them (a model loaded again)."""
        if self._layers is not None:
            kept = tuple(layer for layer in identity.layers if layer.layer in self._layers)
            identity = replace(identity, layers=kept)
        first = self.identity is None
        self.identity = identity
        if first:
            self._sinks = self._make_sinks(identity)
        self._tell_meta()

    def hide(self, layer: int, reason: str) -> None:
        """A layer whose routing can't be seen: it gets no counts, never zeros. One warning a layer and reason."""
        if layer not in self.hidden:
            self.hidden[layer] = reason
            logger().warning("layer %d: no expert counts are recorded: %s", layer, reason)

    def close(self) -> None:
        """Send what is left and close the sinks."""
        if self.identity is None:
            return
        self.end_step()
        self._arrived(wait=True)
        self._flush_pairs()
        if self._capture() is not None:
            self._tell_meta()
        summary = {"steps": self.steps, "lost": dict(self.lost), "failures": failures()}
        for sink in self._sinks:
            sink.close(summary)

    # Steps -------------------------------------------------------------------------------------------------------

    def begin_step(self, num_tokens: int, num_reqs: int, prefill_tokens: int, decode_tokens: int) -> None:
        """A scheduled step begins. One that was left open ends first."""
        self.end_step()
        if self.identity is None:
            self._lose("steps before the model was known")
            return
        if self.steps and self.steps % META_EVERY == 0:
            self._tell_meta()
        self._step = Step(self.steps, self.identity.rank, num_tokens, num_reqs, prefill_tokens, decode_tokens)
        self.steps += 1
        self._routed = {}
        self._open = True
        for sink in self._sinks:
            sink.step_begins(self._step)

    def skip_step(self) -> None:
        """An idle batch: it takes a number, so that data-parallel ranks, which run in lockstep, keep the same ones."""
        self.end_step()
        self.steps += 1

    @property
    def in_forward(self) -> bool:
        """Whether routing counts now."""
        return self._routed is not None

    def records(self, layer: int) -> bool:
        """Whether a layer is wanted and visible."""
        return layer not in self.hidden and (self._layers is None or layer in self._layers)

    def routed(self, one: Routed) -> None:
        """A router chose. Only references are kept until ``forward_done``."""
        if self._routed is None:
            return
        if one.layer in self._routed:
            self.hide(one.layer, "it runs more than once a step (micro-batches, or a draft model)")
            del self._routed[one.layer]
        elif self.records(one.layer):
            self._routed[one.layer] = one

    def forward_done(self) -> None:
        """The step's forward was launched: begin to count it. Nothing waits for the device."""
        step, routed, self._routed = self._step, self._routed, None
        if step is None or routed is None or self.identity is None:
            return
        whole = []
        for one in routed.values():
            if one.ids.shape[0] - one.start < step.num_tokens:
                self._lose("layers with fewer rows than tokens")
            else:
                whole.append(one)
        if len(routed) < sum(self.records(layer.layer) for layer in self.identity.layers):
            self._lose("steps with layers that routed nothing")
        if not whole:
            return
        if self._counter is None:
            self._counter = DeviceCounter() if whole[0].ids.is_cuda else CpuCounter()
        sample = "topk" in self._emit and self._sample_every > 0 and step.number % self._sample_every == 0
        self._counter.submit(step, whole, sample)
        if self._pairs is not None:
            self._pairs.add(step, whole)

    def end_step(self) -> None:
        """The step's range closes; counts that have arrived are sent."""
        if not self._open:
            return
        self._open = False
        self._step = self._routed = None
        for sink in self._sinks:
            sink.step_ends()
        self._arrived()
        if self._sample_every and self.steps % self._sample_every == 0:
            self._flush_pairs()
        if self._capture() != self._told:
            self._tell_meta()

    def abandon_step(self) -> None:
        """The forward raised: the step's range closes, and there are no counts."""
        if self._open:
            self._routed = None
            self._lose("steps whose forward failed")
            self.end_step()

    # Events ------------------------------------------------------------------------------------------------------

    def _arrived(self, wait: bool = False) -> None:
        if self._counter is None:
            return
        for counted in self._counter.drain(wait):
            for cell in counted.cells:
                self._send_cell(counted, cell)

    def _send_cell(self, counted: Counted, cell: Cell) -> None:
        number, rank = counted.step.number, counted.step.rank
        head = (number, cell.layer, rank, cell.num_tokens, cell.top_k)
        if "counts" in self._emit:
            self._send(schema.COUNTS, np.array((*head, cell.counts), schema.counts_dtype(len(cell.counts))))
        if cell.physical is not None and "physical" in self._emit:
            self._send(schema.PHYSICAL, np.array((*head, cell.physical), schema.counts_dtype(len(cell.physical))))
        if cell.experts is not None:
            self._send(schema.TOPK, _topk(number, cell))

    def _send(self, event: str, payload: Any) -> None:
        for sink in self._sinks:
            sink.payload(event, payload)

    def _flush_pairs(self) -> None:
        if self._pairs is not None and self.identity is not None:
            for payload in self._pairs.take(self.identity.rank):
                self._send(schema.PAIRS, payload)

    # moe.meta ----------------------------------------------------------------------------------------------------

    def _lose(self, what: str) -> None:
        self.lost[what] += 1

    def _capture(self) -> dict[str, Any] | None:
        """Failures, losses and hidden layers by name, without their numbers: a change is worth telling at once."""
        known = {"failures": failures(), "lost": sorted(self.lost), "hidden_layers": dict(self.hidden)}
        return known if any(known.values()) else None

    def _tell_meta(self) -> None:
        assert self.identity is not None
        self._told = self._capture()
        capture = None
        if self._told is not None:
            hidden = {str(layer): reason for layer, reason in self.hidden.items()}
            capture = {"failures": failures(), "lost": dict(self.lost), "hidden_layers": hidden}
        for sink in self._sinks:
            sink.meta(
                meta_text(
                    self.identity,
                    sample_every=self._sample_every,
                    encoding=sink.encoding,
                    recording=self.recording,
                    capture=capture,
                )
            )


def _topk(step: int, cell: Cell) -> Any:
    assert cell.experts is not None
    rows = np.zeros(len(cell.experts), schema.topk_dtype(cell.top_k))
    rows["step"], rows["layer"], rows["token"] = step, cell.layer, np.arange(len(rows))
    rows["experts"] = cell.experts
    if cell.weights is not None:
        rows["weights"] = cell.weights
    return rows
