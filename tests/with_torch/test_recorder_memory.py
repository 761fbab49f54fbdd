"""The recorder keeps nothing of a step: Python's memory does not grow with the number of steps."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.recorder import META_EVERY, Recorder
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.sinks.nvtx import NvtxSink
from nvtxmoe.capture.sinks.nvtx_emitter import make_emitter
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, captured, histogram, replay
from tests.with_torch.events import identity

device = stand_ins.device  # the fixture

STEPS = 2_000
#: Growth of Python's memory over STEPS steps. An object of 48 bytes per step would be 96 kB.
MOST_GROWTH_BYTES = 40_000


def growth_bytes(sink: Sink) -> int:
    """Growth of Python's memory over STEPS steps after a warm-up, of which some are sampled and some tell moe.meta."""
    made = Recorder(lambda _: [sink], sample_every=100)
    made.model_loaded(identity())
    made._counter = CudaCounter(histogram)
    graph, tensors = captured(made)
    Event.ready = Event.may_wait = True

    def steps(number: int) -> None:
        for _ in range(number):
            replay(made, graph, tensors, (0, 7), (1, 6))
        made.settle()
        if isinstance(sink, JournalSink):
            sink.flush()
        gc.collect()

    steps(META_EVERY + 100)
    tracemalloc.start()
    try:
        steps(100)
        before, _ = tracemalloc.get_traced_memory()
        steps(STEPS)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    made.close()
    return after - before


@pytest.mark.parametrize("mode", ["moe", "nsys"])
def test_no_object_per_step(mode: str, tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, 0, 3600) if mode == "moe" else NvtxSink(make_emitter("words"))
    assert growth_bytes(sink) < MOST_GROWTH_BYTES


def test_an_object_per_step_would_be_seen(tmp_path: Path) -> None:
    kept: list[bytes] = []

    class Keeping(JournalSink):
        def step_ends(self) -> None:
            kept.append(b"%d" % len(kept))

    assert growth_bytes(Keeping(tmp_path, 0, 3600)) > MOST_GROWTH_BYTES
