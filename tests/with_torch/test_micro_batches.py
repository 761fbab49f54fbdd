"""Steps run as micro-batches: what two threads route is counted as if one forward had routed it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.capture.recording import cuda_counter
from nvtxmoe.capture.recording.micro_batches import divide
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, Graph
from tests.with_torch.events import EXPERTS, TOP_K, Kept, identity

LAYERS = 2


def made(**options: Any) -> tuple[Recorder, Kept]:
    unhook_all()
    sink = Kept()
    recorder = Recorder(lambda _: [sink], **options)
    recorder.model_loaded(identity(LAYERS))
    return recorder, sink


def part(layer: int, rows: torch.Tensor, offset: int, **more: Any) -> RoutingTensors:
    weights = rows.float() / 8
    return RoutingTensors(layer, EXPERTS, rows, weights, token_offset=offset, **more)


def in_threads(recorder: Recorder, rows: list[torch.Tensor], cuts: list[int]) -> None:
    """Route as vLLM does: a thread per micro-batch, taking turns, layer by layer."""
    bounds = [0, *cuts, len(rows[0])]
    turns = [threading.Semaphore(int(place == 0)) for place in range(len(bounds) - 1)]

    def run(place: int) -> None:
        for layer, ids in enumerate(rows):
            turns[place].acquire()
            recorder.routed(part(layer, ids[bounds[place] : bounds[place + 1]], bounds[place]))
            turns[(place + 1) % len(turns)].release()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(turns))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ids_of(seed: int, tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(tokens, EXPERTS, generator=generator).topk(TOP_K).indices for _ in range(LAYERS)]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_counts_samples_and_pairs_are_those_of_the_undivided_step(data: st.DataObject) -> None:
    padded = data.draw(st.integers(2, 12))
    tokens = data.draw(st.integers(1, padded))
    cuts = sorted(data.draw(st.sets(st.integers(1, padded - 1), min_size=1, max_size=2)))
    rows = ids_of(data.draw(st.integers(0, 99)), padded)
    events = []
    for divided in (True, False):
        recorder, sink = made(sample_every=1, emit=frozenset({"counts", "topk", "pairs"}))
        recorder.begin_step(tokens, 1, tokens, 0)
        if divided:
            in_threads(recorder, rows, cuts)
        else:
            for layer, ids in enumerate(rows):
                recorder.routed(part(layer, ids, 0))
        recorder.forward_done()
        recorder.end_step()
        recorder.close()
        assert recorder.lost == {}
        assert recorder.hidden == {}
        events.append([(name, row.tobytes()) for name, row in sink.events if name.startswith("moe.")])
    assert events[0] == events[1]


def test_physical_experts_are_added_too() -> None:
    recorder, sink = made(sample_every=0)
    recorder.begin_step(3, 1, 3, 0)
    for layer in range(LAYERS):
        for offset, ids in ((0, [[0, 1], [0, 2]]), (2, [[1, 2]])):
            chosen = torch.tensor(ids)
            recorder.routed(part(layer, chosen, offset, physical=chosen + 1, num_physical=10))
    recorder.forward_done()
    recorder.end_step()
    assert sink.counts()[0, 1] == [2, 2, 2, 0, 0, 0, 0, 0]
    assert sink.of("moe.physical")[1]["counts"].tolist() == [0, 2, 2, 2, 0, 0, 0, 0, 0, 0]


def test_a_layer_that_one_part_lacks_has_no_counts_and_the_step_is_a_loss() -> None:
    recorder, sink = made(sample_every=0)
    rows = ids_of(1, 4)
    recorder.begin_step(4, 1, 4, 0)
    for layer, offset in ((0, 0), (0, 2), (1, 0)):
        recorder.routed(part(layer, rows[layer][offset : offset + 2], offset))
    recorder.forward_done()
    recorder.end_step()
    assert list(sink.counts()) == [(0, 0)]
    assert dict(recorder.lost) == {"steps in which a layer's routing was not seen in every micro-batch": 1}


@pytest.mark.parametrize("offsets", [(1, 3), (2,)])
def test_parts_without_the_steps_first_tokens_are_no_step(offsets: tuple[int, ...]) -> None:
    routed = [part(0, torch.zeros(2, 2, dtype=torch.int32), offset) for offset in offsets]
    assert divide(routed, 4).parts == ()
    assert divide(routed, 4).incomplete == {0}


def test_a_part_with_too_few_rows_is_left_out() -> None:
    routed = [part(0, torch.zeros(rows, 2, dtype=torch.int32), offset) for offset, rows in ((0, 3), (4, 4))]
    assert divide(routed, 6).incomplete == {0}
    assert divide(routed, 3).incomplete == frozenset()  # the rest of the first part is padding


def test_a_layer_twice_on_the_same_tokens_is_hidden() -> None:
    recorder, sink = made(sample_every=0)
    rows = ids_of(2, 4)
    recorder.begin_step(4, 1, 4, 0)
    for layer, offset in ((0, 0), (0, 2), (1, 0), (1, 2), (1, 2)):
        recorder.routed(part(layer, rows[layer][offset : offset + 2], offset))
    recorder.forward_done()
    recorder.end_step()
    assert set(recorder.hidden) == {1}
    assert list(sink.counts()) == [(0, 0)]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, Kept, Any]:
    stand_ins.device.__wrapped__(monkeypatch)  # type: ignore[attr-defined]
    return stand_ins.recorder()


def captured(recorder: Recorder, padded: int, cut: int) -> tuple[Graph, list[torch.Tensor]]:
    """A graph captured around both threads."""
    graph, tensors = Graph(), [torch.zeros(padded, TOP_K, dtype=torch.int32) for _ in range(LAYERS)]
    recorder.graphs.begin(graph)
    in_threads(recorder, tensors, [cut])
    recorder.graphs.end(graph)
    return graph, tensors


def test_replays_of_a_graph_with_both_parts_are_counted(on_device: tuple[Recorder, Kept, Any]) -> None:
    recorder, sink, _ = on_device
    graph, tensors = captured(recorder, 8, 4)
    whole, wholes = stand_ins.captured(recorder)
    stand_ins.replay(recorder, graph, tensors, (0, 1), (0, 2), (0, 3), (4, 5), (6, 7))
    stand_ins.replay(recorder, graph, tensors, (1, 2))  # the second part is padding
    stand_ins.replay(recorder, whole, wholes, (2, 3))
    stand_ins.replay(recorder, graph, tensors, *[(4, 5)] * 8)
    assert sink.counts() == {}
    Event.ready = True
    recorder.settle()
    for layer in range(LAYERS):
        assert sink.counts()[0, layer] == [3, 1, 1, 1, 1, 1, 1, 1]
        assert sink.counts()[1, layer] == [0, 1, 1, 0, 0, 0, 0, 0]
        assert sink.counts()[2, layer] == [0, 0, 1, 1, 0, 0, 0, 0]
        assert sink.counts()[3, layer] == [0, 0, 0, 0, 8, 8, 0, 0]
    assert [row["num_tokens"] for row in sink.of("moe.counts")] == [5, 5, 1, 1, 1, 1, 8, 8]
    assert recorder.lost == {}


@pytest.mark.parametrize("room", [0, 1])
def test_a_step_of_which_one_part_is_dropped_is_dropped(
    room: int, on_device: tuple[Recorder, Kept, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, sink, counter = on_device
    graph, tensors = captured(recorder, 4, 2)
    stand_ins.replay(recorder, graph, tensors, *[(0, 1)] * 4)
    monkeypatch.setattr(cuda_counter, "MOST_PENDING", 2 + room)
    stand_ins.replay(recorder, graph, tensors, *[(2, 3)] * 4)
    assert counter.dropped == 1
    Event.ready = True
    recorder.settle()
    assert {step for step, _ in sink.counts()} == {0}
    stand_ins.replay(recorder, graph, tensors, *[(6, 7)] * 4)
    recorder.settle()
    assert sink.counts()[2, 0] == [0, 0, 0, 0, 0, 0, 4, 4]
    assert dict(recorder.lost) == {"steps left out, the device being far behind": 1}
