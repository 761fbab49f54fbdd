"""Routing under CUDA graphs, with stand-ins for the device: what is held, and that the host never waits."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest
import torch

from nvtxmoe.capture.recording import cuda_counter, cuda_graphs, sending
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.cuda_graphs import Graphs
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors, group_by_shape
from nvtxmoe.capture.run_identity import Step
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, Graph, captured, recorder, replay, routed
from tests.with_torch.events import EXPERTS

device = stand_ins.device  # the fixture


def test_replays_are_counted_from_the_captured_tensors() -> None:
    made, sink, _ = recorder()
    graph, tensors = captured(made)
    other, others = captured(made, rows=8)
    replay(made, graph, tensors, (0, 1), (0, 2))
    replay(made, other, others, (5, 6), (5, 7), (5, 6))
    replay(made, graph, tensors, (3, 4))
    assert sink.counts() == {}  # nothing has arrived, and nobody waited
    Event.ready = True
    replay(made, graph, tensors, (7, 0))
    counts = sink.counts()
    assert counts[0, 0] == counts[0, 1] == [2, 1, 1, 0, 0, 0, 0, 0]
    assert counts[1, 0] == [0, 0, 0, 0, 0, 3, 2, 1]
    assert counts[2, 1] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert counts[3, 0] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert made.lost == {}


def test_capture_is_not_counted_and_what_it_holds_is_told() -> None:
    made, sink, _ = recorder()
    graph, tensors = captured(made)
    assert made.graphs.held_bytes == 2 * 4 * 2 * (4 + 4)
    Event.ready = True
    replay(made, graph, tensors, (0, 1))
    assert sink.of("meta")[-1]["held_bytes"] == made.graphs.held_bytes
    assert len(sink.counts()) == 2


def test_a_step_of_several_graphs_and_an_eager_layer() -> None:
    made, sink, _ = recorder()
    piece, tensor = Graph(), torch.tensor([[1, 2]], dtype=torch.int32)
    made.graphs.begin(piece)
    made.routed(routed(0, tensor))
    made.graphs.end(piece)
    attention = Graph()
    made.graphs.begin(attention)
    made.graphs.end(attention)
    Event.ready = True
    made.begin_step(1, 1, 0, 1)
    made.replayed(id(piece))
    made.replayed(id(attention))
    made.routed(routed(1, torch.tensor([[3, 4]], dtype=torch.int64)))
    made.forward_done()
    made.end_step()
    made.send_arrived()
    assert sink.counts() == {(0, 0): [0, 1, 1, 0, 0, 0, 0, 0], (0, 1): [0, 0, 0, 1, 1, 0, 0, 0]}


def test_a_graph_with_a_layer_twice_hides_it() -> None:
    made, sink, _ = recorder()
    graph = Graph()
    tensor = torch.zeros(1, 2, dtype=torch.int32)
    made.graphs.begin(graph)
    for layer in (0, 1, 1):
        made.routed(routed(layer, tensor))
    made.graphs.end(graph)
    Event.ready = True
    replay(made, graph, [tensor], (0, 1))
    replay(made, graph, [tensor], (0, 1))
    assert {layer for _, layer in sink.counts()} == {0}
    assert list(made.hidden) == [1]


def test_a_graph_that_goes_lets_its_tensors_go() -> None:
    made, _, _ = recorder()
    graph, _ = captured(made)
    assert made.graphs.held_bytes > 0
    del graph
    gc.collect()
    assert made.graphs.held_bytes == 0


def test_a_graph_at_the_address_of_another_is_not_taken_for_it() -> None:
    made, sink, _ = recorder()
    Event.ready = True
    graph, tensors = captured(made)
    replay(made, graph, tensors, (0, 1))
    made.graphs.begin(graph)  # captured again, with other tensors
    fresh = [torch.zeros(4, 2, dtype=torch.int32) for _ in (0, 1)]
    for layer, tensor in enumerate(fresh):
        made.routed(routed(layer, tensor))
    made.graphs.end(graph)
    replay(made, graph, fresh, (6, 7))
    assert sink.counts()[1, 0] == [0, 0, 0, 0, 0, 0, 1, 1]


def test_memory_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Graphs()
    graph = Graph()
    held.begin(graph)
    tensor = torch.zeros(4, 2, dtype=torch.int32)
    monkeypatch.setattr(cuda_graphs, "MOST_HELD_BYTES", 2 * 64 + 32 + 8)
    for layer in range(5):
        held.keep(routed(layer, tensor))
    kept = held.routed(id(graph))
    weights = [one.weights for one in kept if isinstance(one, RoutingTensors)]
    assert [one is not None for one in weights] == [True, True, False]
    assert (held.without_weights, held.without_ids) == (3, 2)
    assert held.held_bytes == 2 * 64 + 32


def test_the_device_far_behind_is_a_loss_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_counter, "MOST_PENDING", 3)
    made, sink, counter = recorder()
    graph, tensors = captured(made)
    for _ in range(5):
        replay(made, graph, tensors, (0, 1))
    assert counter.dropped == 2
    assert list(sink.of("meta")[-1]["capture"]["lost"]) == ["steps left out, the device being far behind"]
    Event.may_wait = True
    made.close()
    assert sink.of("meta")[-1]["capture"]["lost"] == {"steps left out, the device being far behind": 2}
    assert sorted(step for step, _ in sink.counts()) == [0, 0, 1, 1, 2, 2]


def test_slots_are_used_again() -> None:
    made, _, counter = recorder()
    graph, tensors = captured(made)
    Event.ready = True
    for _ in range(50):
        replay(made, graph, tensors, (0, 1))
    assert sum(map(len, counter._free.values())) == 1


def test_a_step_on_its_way_holds_no_routing_tensor() -> None:
    _, _, counter = recorder()
    tensor = torch.zeros(2, 2, dtype=torch.int32)
    gone = weakref.ref(tensor)
    counter.submit(Step(0, 0, 2, 1, 2, 0), (routed(0, tensor),), sample=False)
    del tensor
    gc.collect()
    assert gone() is None
    assert list(counter.drain()) == []


def test_tensors_of_a_kind_that_the_kernel_cannot_read_are_counted_otherwise() -> None:
    """Other integers, and columns that are not side by side."""
    for tensor in (
        torch.tensor([[1, 2], [2, 3]], dtype=torch.int8),
        torch.tensor([[1, 2], [2, 3]], dtype=torch.uint8),
        torch.tensor([[1, 2], [2, 3]], dtype=torch.int32).t().contiguous().t(),
    ):
        made, sink, counter = recorder()
        Event.ready = True
        graph = Graph()
        made.graphs.begin(graph)
        for layer in (0, 1):
            made.routed(routed(layer, tensor))
        made.graphs.end(graph)
        for _ in range(2):
            replay(made, graph, [tensor], (1, 2), (2, 3))
        assert sink.counts()[1, 0] == [0, 1, 2, 1, 0, 0, 0, 0]
        assert counter._plans == {}  # a kept plan would keep the tensors


def test_rows_further_apart_than_their_width() -> None:
    made, sink, _ = recorder()
    Event.ready = True
    wide = torch.tensor([[1, 2, 7, 7], [2, 3, 7, 7]], dtype=torch.int64)
    made.begin_step(2, 1, 2, 0)
    for layer in (0, 1):
        made.routed(routed(layer, wide[:, :2]))
    made.forward_done()
    made.end_step()
    made.send_arrived()
    assert sink.counts()[0, 0] == [0, 1, 2, 1, 0, 0, 0, 0]


def test_devices_are_counted_apart() -> None:
    here = torch.zeros(1, 2, dtype=torch.int32)
    made = tuple(
        RoutingTensors(n, EXPERTS, ids, None)
        for n, ids in enumerate((here, torch.empty_like(here, device="meta"), here))
    )
    assert [group.layers for group in group_by_shape(made)] == [(0, 2), (1,)]


def test_memory_that_a_kernel_may_still_use_is_never_used_again() -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("launch failed")

    counter = CudaCounter(fails)
    tensor = torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="launch failed"):
        counter.submit(Step(0, 0, 2, 1, 2, 0), (routed(0, tensor),), sample=False)
    assert len(counter._parked) == 1
    assert list(counter.drain()) == []


def test_ids_let_go_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_HELD_BYTES", 40)
    made, _, _ = recorder()
    Event.ready = True
    graph, tensors = captured(made)
    replay(made, graph, tensors, (0, 1))
    assert made.lost["layers of graphs not kept, graphs holding too much"] == 1


def test_nobody_asks_the_device_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "IDLE_S", 0.01)
    asked: list[bool] = []
    made, _, _ = recorder()

    def query(_: Event) -> bool:
        if threading.get_ident() == made._sending.thread.ident:  # those of other tests may run still
            asked.append(made.graphs.closed)
        return False

    monkeypatch.setattr(Event, "query", query)
    graph, tensors = captured(made)
    replay(made, graph, tensors, (0, 1))
    made.graphs.announce()
    asked.clear()
    time.sleep(0.2)
    assert asked == []
    made.graphs.withdraw()
    time.sleep(0.2)
    assert asked
    assert not any(asked)
