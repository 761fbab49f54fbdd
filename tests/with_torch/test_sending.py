"""The thread that sends a GPU's counts: what it does, when, and what happens where it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nvtxmoe.capture.hooks import failures
from nvtxmoe.capture.recording import sending
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.sending import WAKE_EVERY
from nvtxmoe.capture.run_identity import Step
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, Graph, captured, histogram, routed
from tests.with_torch.events import Kept, identity

device = stand_ins.device  # the fixture


class Watched(Kept):
    """Remembers which thread brought counts."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()
        self.fails = False

    def payloads(self, event: str, rows: Any) -> None:
        """Keep them."""
        self.threads.add(threading.get_ident())
        if self.fails:
            raise RuntimeError("no room")
        super().payloads(event, rows)


def made(steps_a_send: int = 1) -> tuple[Recorder, Watched]:
    """A recorder that counts on the stand-in device."""
    sink = Watched()
    sink.steps_a_send = steps_a_send
    recorder = Recorder(lambda _: [sink], sample_every=0)
    recorder.model_loaded(identity())
    recorder._counter = CudaCounter(histogram)
    Event.ready = True
    return recorder, sink


def step(recorder: Recorder, graph: Graph, tensors: list[torch.Tensor], expert: int) -> None:
    """A step with one token, whose counts nobody sends but the thread."""
    recorder.begin_step(1, 1, 0, 1)
    recorder.replayed(id(graph))
    for tensor in tensors:
        tensor[:1] = torch.tensor([[expert, 7]], dtype=tensor.dtype)
    recorder.forward_done()
    recorder.end_step()


def until(done: Callable[[], bool]) -> None:
    """Wait for the thread."""
    for _ in range(2000):
        if done():
            return
        time.sleep(0.005)
    raise AssertionError("the thread does not send")


@pytest.mark.parametrize("steps_a_send", [1, 16])
def test_serving_never_calls_a_sink_with_counts(monkeypatch: pytest.MonkeyPatch, steps_a_send: int) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 0.01)
    recorder, sink = made(steps_a_send)
    graph, tensors = captured(recorder)
    for number in range(5):
        step(recorder, graph, tensors, number)
    until(lambda: len(sink.counts()) == 10)
    assert threading.get_ident() not in sink.threads
    assert {key: found.index(1) for key, found in sink.counts().items()} == {
        (number, layer): number for number in range(5) for layer in (0, 1)
    }


def test_while_steps_run_it_sends_soon_and_many_steps_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 1000.0)
    monkeypatch.setattr(sending, "SOON_S", 0.001)
    recorder, sink = made()
    graph, tensors = captured(recorder)
    for _ in range(WAKE_EVERY - 1):
        step(recorder, graph, tensors, 0)
    assert sink.counts() == {}  # it sleeps for 1,000 seconds
    step(recorder, graph, tensors, 0)
    until(lambda: len(sink.counts()) == 2 * WAKE_EVERY)


def test_the_thread_asks_no_other_gpu_than_that_of_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 0.01)
    calls: list[tuple[int, Any]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: calls.append((threading.get_ident(), gpu)))

    def query(_: Event) -> bool:
        calls.append((threading.get_ident(), None))
        return True

    monkeypatch.setattr(Event, "query", query)
    recorder, sink = made()
    counter, recorder._counter = recorder._counter, None  # the thread does not see it yet
    assert isinstance(counter, CudaCounter)
    assert not counter.enter_thread()
    _, tensors = captured(recorder)
    counter.submit(Step(0, 0, 1, 1, 0, 1), tuple(routed(n, one) for n, one in enumerate(tensors)), sample=False)
    counter._device = torch.device("cuda", 1)
    recorder._counter = counter
    until(lambda: len(sink.counts()) == 2)
    thread = recorder._sending.thread.ident
    own = [gpu for by, gpu in calls if by == thread]  # threads of recorders of other tests may run still
    assert own == [torch.device("cuda", 1), None]


def test_a_sink_that_fails_in_the_thread_is_said_and_serving_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 0.01)
    recorder, sink = made()
    graph, tensors = captured(recorder)
    sink.fails = True
    step(recorder, graph, tensors, 0)
    until(lambda: "send" in failures())
    assert failures()["send"] == "RuntimeError: no room"
    step(recorder, graph, tensors, 0)
    assert recorder.steps == 2
    assert sink.of("meta")[-1]["capture"]["failures"] == {"send": "RuntimeError: no room"}
