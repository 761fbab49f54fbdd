"""The recorder: what routers chose in a step becomes events of schema 1, in one or two sinks.

It knows nothing of vLLM. A step is ``begin_step``, any number of ``routed``, ``forward_done``, ``end_step``; what comes
outside of a step (warm-up, graph capture, idle batches) is not counted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from nvtxmoe.capture.hooks import FAILED, failures
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.compile_ahead import compile_counting, compile_recomputing
from nvtxmoe.capture.recording.cpu_counter import Counter, CpuCounter
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.cuda_graphs import Graphs
from nvtxmoe.capture.recording.micro_batches import Together, divide
from nvtxmoe.capture.recording.pair_counter import PairCounts
from nvtxmoe.capture.recording.process_ends import close_in_children, drain_at_exit
from nvtxmoe.capture.recording.router_logits import Routed, RouterLogits
from nvtxmoe.capture.recording.sending import WAKE_EVERY, SendingThread
from nvtxmoe.capture.recording.step_events import StepEvents
from nvtxmoe.capture.recording.step_routing import StepRouting
from nvtxmoe.capture.recording.windows import EveryStep
from nvtxmoe.capture.run_identity import Identity, Step, meta_text
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.formats import schema

#: Steps after which moe.meta is sent again, for captures that begin later.
META_EVERY = 500
#: Steps of one span of moe.pairs.
PAIRS_EVERY = 100
#: Counts of a CPU wait for so many seconds at most to be sent together.
SEND_S = 0.25


class Recorder:
    """Records one process.

    Parameters:
        sample_every: token-level rows on every so many steps, 0 for never.
        layers: numbers to record; None for all.
        emit: of ``settings.EMITS``.
        every_layer: whether a step in which a known layer routes nothing has lost something.
        make_sinks: called when the identity is known, since journals are named by rank. It returns sinks, which take
            all steps, or windows.
    """

    def __init__(
        self,
        make_sinks: Callable[[Identity], Sequence[Sink] | EveryStep],
        *,
        sample_every: int = 100,
        layers: frozenset[int] | None = None,
        emit: frozenset[str] = frozenset({"counts", "topk", "physical"}),
        every_layer: bool = True,
    ) -> None:
        self.identity: Identity | None = None
        self.hidden: dict[int, str] = {}
        self.lost: Tally[str] = Tally()
        self.steps = 0
        self.idle_steps = 0
        self.warming_up = False  # steps are the engine's own: not counted
        self._make_sinks = make_sinks
        self.recorded = EveryStep()
        self._takers: Sequence[Sink] = ()  # of the running step
        self._steps_a_send = 1
        self._send_at = 0.0  # counts wait for other steps until then at most
        self._sample_every = sample_every
        self._layers = layers
        self._emit = emit
        self._every_layer = every_layer
        self._expected = 0  # layers whose routing a step must show
        self._events = StepEvents(emit)
        self._step: Step | None = None
        self._lock = threading.RLock()
        self._routing = StepRouting(self.records, self.hide, self._lock)
        self.replayed = self._routing.replayed  # a CUDA graph is replayed, as part of the step's forward
        self._open = False
        self._counter: Counter | None = None
        self._together = Together()
        self._pairs = PairCounts() if "pairs" in emit else None
        self._warmed: set[object] = set()  # kinds of logits that are compiled for
        self._announced_changes: object = None
        self._sending = SendingThread()
        self._closed = False
        self._stopped: str | None = None  # what steps are lost as

    # The process -------------------------------------------------------------------------------------------------

    def model_loaded(self, identity: Identity) -> None:
        """The layers are known. A second call replaces them (a model loaded again)."""
        if self._layers is not None:
            model_layers = sorted(layer.layer for layer in identity.layers)
            if absent := sorted(self._layers - set(model_layers)):
                logger().warning("layers %s are asked for, and the model has %s", absent[:20], model_layers)
            recorded_layers = tuple(layer for layer in identity.layers if layer.layer in self._layers)
            identity = replace(identity, layers=recorded_layers)
        first = self.identity is None
        self.identity = identity
        if first:
            close_in_children(self)
            drain_at_exit(self)
            made = self._make_sinks(identity)
            self.recorded = made if isinstance(made, EveryStep) else EveryStep(made)
            self._steps_a_send = self.recorded.steps_a_send
            self._sending.start(self)
        self._announce_changes()
        self.tell_meta()

    def prepare_for_gpu(self) -> None:
        """Compile the counting now: else a request would wait for it."""
        compile_counting(self)

    def prepare_for_logits(self, logits: RouterLogits) -> None:
        """Compile the recomputing of such logits during the warm-up, once a kind."""
        if self.warming_up:
            compile_recomputing(self, logits)

    def same_layers(self, identity: Identity) -> bool:
        """Whether a model has the layers of the one that is recorded."""
        recorded_layers = [layer for layer in identity.layers if self._layers is None or layer.layer in self._layers]
        return self.identity is not None and list(self.identity.layers) == recorded_layers

    def refuse_second_model(self) -> None:
        """Counts of another model in this process would be added to those of the first."""
        logger().warning("another model was loaded in this process: it is not recorded, only the first one is")
        self._lose("steps of another model in the process, from its load on")
        self.tell_meta()

    def stop(self, change: str) -> None:
        """Record no further step: ranks or experts are no longer those of moe.meta, which holds for the whole run."""
        logger().warning("nothing is recorded from here on: ranks or experts have changed (%s)", change)
        self.end_step()
        self._stopped = f"{schema.RANKS_CHANGED} ({change})"

    def _announce_changes(self) -> None:
        layers = () if self.identity is None else self.identity.layers
        self._expected = sum(self.records(layer.layer) for layer in layers)
        self._routing.forget_merged()

    def hide(self, layer: int, reason: str) -> None:
        """A layer whose routing can't be seen: it gets no counts, never zeros. One warning a layer and reason."""
        if layer not in self.hidden:
            self.hidden[layer] = reason
            self._announce_changes()
            logger().warning("layer %d: no expert counts are recorded: %s", layer, reason)

    def close(self) -> None:
        """Send what is left and close the sinks. Nothing is recorded afterwards."""
        if self.identity is None or self._closed:
            return
        self.flush()
        self._closed = True
        for sink in self.recorded.sinks:
            sink.close(self.summary(sink))

    def flush(self) -> None:
        """A worker ends, its process perhaps later, or with another model: send and write everything so far."""
        if self.identity is None or self._closed:
            return
        self.end_step()
        self.settle()
        if failures() or self.lost or self.hidden or self._events.ambiguous.tokens:
            self.tell_meta()
        for sink in self.recorded.sinks:
            sink.conclude(self.summary(sink))

    def summary(self, sink: Sink) -> dict[str, Any]:
        """Return what a sink is told at its end: numbers of batches, of its window alone if it has one; losses."""
        window = self.recorded.of_sink(sink)
        batches = {"steps": self.steps, "idle_steps": self.idle_steps} if window is None else window.batches(self.steps)
        return {**batches, "lost": self._lost_for(sink), "failures": failures()}

    def _lost_for(self, sink: Sink) -> dict[str, int]:
        window = self.recorded.of_sink(sink)
        return dict(self.lost) if window is None else window.lost(self.lost, self.graphs.losses)

    def settle(self) -> None:
        """Send everything that was counted so far. This waits for the device."""
        with self._lock:
            if self._pairs is not None:
                self._pairs.begin()
            self._arrived(wait=True)

    # Steps -------------------------------------------------------------------------------------------------------

    def begin_step(self, num_tokens: int, num_reqs: int, prefill_tokens: int, decode_tokens: int) -> None:
        """A scheduled step begins. One that was left open ends first."""
        if self._open:
            self.end_step()
        if self.warming_up:
            return
        if self._stopped is not None:
            self._lose(self._stopped)
            if self._changes() != self._announced_changes:
                self.tell_meta()
            return
        if self.identity is None:
            self._lose("steps before the model was known")
            return
        number = self.steps
        self.steps = number + 1
        recorded = self.recorded
        takers = self._takers = recorded.begin(number, num_tokens) if recorded.windowed else recorded.always
        if recorded.quiet and not takers:
            return
        if number and number % META_EVERY == 0:
            self.tell_meta()
        fields = number, self.identity.rank, num_tokens, num_reqs, prefill_tokens, decode_tokens
        step = self._step = tuple.__new__(Step, fields)  # Step() would run Python of its own
        self._routing.begin()
        self._open = True
        for sink in takers:
            sink.step_begins(step)

    def pass_step(self) -> bool:
        """A scheduled step begins: return whether it took a number outside of all windows; else call ``begin_step``."""
        if self._open or self.warming_up or self._stopped is not None or self.identity is None:
            return False
        passes = self.recorded.passes(self.steps)
        self.steps += passes
        return passes

    def skip_step(self) -> None:
        """An idle batch: it takes a number, so that data-parallel ranks, which run in lockstep, keep the same ones."""
        self.end_step()
        if self._stopped is not None:
            return
        self.recorded.skip(self.steps)
        self.steps += 1
        self.idle_steps += 1

    def records(self, layer: int) -> bool:
        """Whether a layer is wanted and visible."""
        return layer not in self.hidden and (self._layers is None or layer in self._layers)

    @property
    def sends_soon(self) -> bool:
        """Whether counts may not wait until several steps are sent together."""
        return self._steps_a_send == 1

    @property
    def quiet(self) -> bool:
        """Whether what runs now is outside of every window: no ranges are wanted, except those that graphs keep."""
        return self.recorded.quiet and not self.warming_up

    @property
    def graphs(self) -> Graphs:
        """Routing of captured CUDA graphs."""
        return self._routing.graphs

    def listens(self, layer: int) -> bool:
        """Whether what this layer's router chooses now is to be kept."""
        return self._routing.listens(layer)

    def routed(self, tensors: Routed) -> None:
        """A router chose, or a kernel that routes inside itself was given logits.

        Only references are kept, until ``forward_done`` or as long as a graph lives.
        """
        self._routing.add(tensors)

    def forward_done(self) -> None:
        """The step's forward was launched: begin to count it. Nothing waits for the device."""
        step, self._step = self._step, None
        tensors = self._routing.end()
        if step is None or self.identity is None:
            return
        routed, key = tensors.routed, tensors.key
        if tensors.divided:
            self._count_micro_batches(step, routed, key)
            return
        if routed and tensors.rows < step.num_tokens:
            routed, key = tuple(tensors for tensors in routed if self._has_all_tokens(tensors, step)), None
        if self._every_layer and len(routed) < self._expected:
            self._lose("steps in which a layer's routing was not seen")
        if not routed:
            return
        counter = self._counter or self._counter_for(routed)
        counter.submit(step, routed, self._samples(step), key, None if self._pairs is None else self._pairs_of(step))

    def _count_micro_batches(self, step: Step, routed: tuple[Routed, ...], key: Hashable | None) -> None:
        divided = divide(routed, step.num_tokens)
        whole_layers = len({tensors.layer for tensors in routed} - divided.incomplete)
        if self._every_layer and whole_layers < self._expected:
            self._lose("steps in which a layer's routing was not seen in every micro-batch")
        if not divided.parts:
            return
        with self._lock:  # the thread that sends must not see a part of a step that is then left out
            self._together.submit(
                self._counter_for(routed), step, divided, self._samples(step), key, self._pairs_of(step)
            )

    def _counter_for(self, routed: tuple[Routed, ...]) -> Counter:
        if self._counter is None:
            self._counter = CudaCounter() if routed[0].is_cuda else CpuCounter()
        return self._counter

    def _samples(self, step: Step) -> bool:
        return "topk" in self._emit and self._sample_every > 0 and step.number % self._sample_every == 0

    def _pairs_of(self, step: Step) -> PairCounts | None:
        return self._pairs if self.recorded.takes(step.number) else None

    def _has_all_tokens(self, tensors: Routed, step: Step) -> bool:
        if tensors.own_rows >= step.num_tokens:
            return True
        self._lose("layers with fewer rows than tokens")
        return False

    def end_step(self) -> None:
        """The step's range closes; counts that have arrived are sent: a GPU's by a thread of its own."""
        if not self._open:
            return
        self._open = False
        if self._step is not None:  # its forward did not come to its end
            self._step = None
            self._routing.end()
        for sink in self._takers:
            sink.step_ends()
        if self._pairs is not None and self.steps % PAIRS_EVERY == 0:
            with self._lock:  # a window that closes begins new spans, too
                self._pairs.begin()
        if self.recorded.windowed:
            self.recorded.end()
        if self._counter is not None and self._counter.arrives_later:
            if not self.steps % WAKE_EVERY:
                self._sending.wake()
        elif not self.steps % self._steps_a_send or time.monotonic() >= self._send_at:
            with self._lock:
                self._arrived()
        if self._changes() != self._announced_changes:
            self.tell_meta()

    def abandon_step(self) -> None:
        """The forward raised: the step's range closes, and there are no counts."""
        if self._open:
            self._lose("steps whose forward failed")
            self.end_step()

    # Events ------------------------------------------------------------------------------------------------------

    def send_arrived(self) -> None:
        """Send the counts that have arrived, unless the device must not be asked now. Any thread may call it."""
        with self._lock:
            if not self._closed and not self.graphs.closed:
                self._arrived()

    def _arrived(self, wait: bool = False) -> None:
        self._send_at = time.monotonic() + SEND_S
        if self._counter is None or self.identity is None:
            return
        for counted in self._counter.drain(wait):
            whole_step = self._together.add(counted)
            if whole_step is not None:
                self._events.send(whole_step, self.recorded)
        if self._pairs is not None:
            for payload in self._pairs.arrived(self.identity.rank, wait):
                for sink in self.recorded.of(int(payload["first_step"])):
                    sink.payload(schema.PAIRS, payload)
        if self._counter.dropped:
            self.lost["steps left out, the device being far behind"] = self._counter.dropped
        self.lost |= Tally(self.graphs.losses)

    def _lose(self, what: str) -> None:
        self.lost[what] += 1

    def _changes(self) -> object:
        """Numbers one of which changes when moe.meta is worth sending again: a new failure, loss or hidden layer."""
        return len(FAILED), len(self.lost), len(self.hidden), self._routing.graphs.held_bytes

    def tell_meta(self) -> None:
        """Send moe.meta to all sinks. Any thread may call it."""
        assert self.identity is not None
        with self._lock:  # the thread that sends changes what it lists
            self._announced_changes = self._changes()
            for sink in self.recorded.sinks:
                sink.meta(self._meta_for(sink, self.identity))

    def _meta_for(self, sink: Sink, identity: Identity) -> bytes:
        hidden = {str(layer): reason for layer, reason in self.hidden.items()}
        capture = {"failures": failures(), "lost": self._lost_for(sink), "hidden_layers": hidden}
        return meta_text(
            identity,
            sample_every=self._sample_every,
            emit=self._emit,
            encoding=sink.encoding,
            recomputed=self._events.ambiguous.as_meta(),
            held_bytes=self.graphs.held_bytes,
            hidden=self.hidden,
            capture=capture if any(capture.values()) else None,
            windows=self.recorded.bounds_for(sink),
        )
