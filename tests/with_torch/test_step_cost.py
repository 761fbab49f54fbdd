"""What a step uses again instead of making it anew: rows, slots, stream objects; and that nothing is mixed up by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nvtxmoe.capture.hooks import FAILED, Hook
from nvtxmoe.capture.recording import current_stream
from nvtxmoe.capture.recording.cpu_counter import CpuCounter
from nvtxmoe.capture.recording.current_stream import CurrentStreams, raw_stream_function
from nvtxmoe.capture.recording.prepared_rows import PreparedRows
from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks.nvtx import NvtxSink
from nvtxmoe.formats import schema
from nvtxmoe.formats.checksum import seal, sealed_dtype
from nvtxmoe.formats.journal import record, records_of
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, Graph, recorder, replay, routed

device = stand_ins.device  # the fixture


def graph_of(made: Any, layer: int) -> tuple[Graph, list[torch.Tensor]]:
    """A graph with one layer in it."""
    graph, tensor = Graph(), torch.zeros(4, 2, dtype=torch.int32)
    made.graphs.begin(graph)
    made.routed(routed(layer, tensor))
    made.graphs.end(graph)
    return graph, [tensor]


def test_counts_of_layers_of_one_shape_stay_apart() -> None:
    """Two graphs of a layer each: memory of the same size, which must not be used for the other layer's counts."""
    made, sink, _ = recorder()
    first, second = graph_of(made, 0), graph_of(made, 1)
    Event.ready = True
    for number in range(6):
        replay(made, *(first if number % 2 else second), (number, 7))
    made.close()
    counts = sink.counts()
    assert sorted(counts) == [(0, 1), (1, 0), (2, 1), (3, 0), (4, 1), (5, 0)]
    for (step, _), found in counts.items():
        assert found == [int(expert in (step, 7)) for expert in range(8)]


def test_steps_of_a_cpu_that_are_sent_together_keep_their_own_counts() -> None:
    made, sink, _ = recorder()
    made._counter, made._steps_a_send, made._send_at = CpuCounter(), 4, float("inf")
    steps = []
    for number in range(8):
        made.begin_step(1, 1, 0, 1)
        made.routed(routed(0, torch.tensor([[number, 7]], dtype=torch.int32)))
        made.forward_done()
        made.end_step()
        steps.append(len({step for step, _ in sink.counts()}))
    assert steps == [0, 0, 0, 4, 4, 4, 4, 8]
    assert [sink.counts()[step, 0].index(1) for step in range(7)] == list(range(7))
    made._send_at = 0.0  # time is up
    made.begin_step(1, 1, 0, 1)
    made.routed(routed(0, torch.tensor([[1, 7]], dtype=torch.int32)))
    made.forward_done()
    made.end_step()
    assert len({step for step, _ in sink.counts()}) == 9


def test_prepared_rows_are_those_of_the_step() -> None:
    prepared = PreparedRows((3, 5), 2, 4)
    counts = np.arange(8, dtype=np.int32).reshape(2, 4)
    for step in (Step(7, 1, 6, 2, 6, 0), Step(8, 1, 6, 2, 0, 6), Step(9, 2, 3, 1, 3, 0)):
        counts += 1
        wanted = np.zeros(2, sealed_dtype(4))
        wanted["step"], wanted["rank"], wanted["num_tokens"] = step.number, step.rank, step.num_tokens
        wanted["layer"], wanted["top_k"], wanted["counts"] = (3, 5), 2, counts
        assert np.array_equal(prepared.filled(step, counts), wanted)


def test_records_and_words_leave_checksums_out() -> None:
    """Their layout is that of schema 1: readers take the length for the number of experts."""
    plain, sealed = np.zeros(3, schema.counts_dtype(5)), np.zeros(3, sealed_dtype(5))
    for rows in (plain, sealed):
        rows["step"], rows["layer"], rows["counts"] = 7, (1, 2, 4), np.arange(15).reshape(3, 5)
    seal(sealed)
    assert bytes(records_of("counts", 99, sealed)) == bytes(records_of("counts", 99, plain))


def test_records_of_rows_are_those_of_each_row() -> None:
    rows = np.zeros(3, schema.counts_dtype(5))
    rows["step"], rows["layer"], rows["counts"] = 7, (1, 2, 4), np.arange(15).reshape(3, 5)
    together = records_of("counts", 99, rows)
    assert bytes(together) == b"".join(record("counts", 99, row.tobytes()) for row in rows)
    rows["counts"] = 0  # the recorder fills its rows again
    assert bytes(together) != bytes(records_of("counts", 99, rows))


def test_the_range_of_each_step_has_the_fields_of_that_step() -> None:
    pushed: list[Any] = []
    emitter = SimpleNamespace(encoding="binary", push_step=lambda payload: pushed.append(payload.copy()))
    sink: Any = NvtxSink(emitter)
    steps = [Step(7, 3, 6, 2, 6, 0), Step(8, 3, 6, 2, 6, 0), Step(1 << 40, 3, 6, 2, 0, 6), Step(9, 3, 6, 2, 0, 6)]
    for step in steps:
        sink.step_begins(step)
    assert pushed == [step.payload() for step in steps]


class Recorded:
    """An event that remembers what it was recorded on."""

    def __init__(self) -> None:
        self.on: list[Any] = []

    def record(self, stream: Any = None) -> None:
        """Remember."""
        self.on.append(stream)


def test_stream_objects_are_kept_by_their_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    current = [11]
    made: list[int] = []

    def current_stream_of(_: Any) -> str:
        made.append(current[0])
        return f"stream {current[0]}"

    monkeypatch.setattr(current_stream, "raw_stream_function", lambda: lambda _: current[0])
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream_of)
    streams, event, gpu = CurrentStreams(), Recorded(), torch.device("cuda", 0)
    for handle in (11, 11, 12, 11):
        current[0] = handle
        streams.record(event, gpu)
    assert event.on == ["stream 11", "stream 11", "stream 12", "stream 11"]
    assert made == [11, 12]


def test_where_pytorch_does_not_tell_the_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Recorded()
    CurrentStreams().record(event, torch.device("cpu"))
    monkeypatch.delattr(torch._C, "_cuda_getCurrentRawStream", raising=False)
    assert raw_stream_function() is None
    CurrentStreams().record(event, torch.device("cuda", 0))
    assert event.on == [None, None]


def test_a_failure_of_a_hook_is_told_with_the_step_in_which_it_failed() -> None:
    made, sink, _ = recorder()
    graph, tensors = graph_of(made, 0)
    Event.ready = True
    replay(made, graph, tensors, (0, 7))
    before, metas = len(FAILED), len(sink.of("meta"))
    Hook("dispatch").fail(RuntimeError("no"), 0)
    assert len(FAILED) == before + 1
    replay(made, graph, tensors, (0, 7))
    assert len(sink.of("meta")) == metas + 1
    replay(made, graph, tensors, (0, 7))
    assert len(sink.of("meta")) == metas + 1  # told once
