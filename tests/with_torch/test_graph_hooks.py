"""The hooks on PyTorch's own graph classes, with stand-ins beneath them: there is no GPU here."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nvtxmoe.capture.hooks import REGISTRY, unhook_all
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.cuda_graphs import Graphs, hook_graphs
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from tests.with_torch.events import EXPERTS, Kept, identity


class CUDAGraph:
    """As torch.cuda.CUDAGraph."""

    replays = 0
    fails = False

    def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
        if self.fails:
            raise RuntimeError("no capture")

    def capture_end(self) -> None:
        return None

    def replay(self) -> None:
        CUDAGraph.replays += 1


class Context:
    """As torch.cuda.graph: a context manager around a capture."""

    def __init__(self, cuda_graph: CUDAGraph) -> None:
        self.cuda_graph = cuda_graph

    def __enter__(self) -> None:
        self.cuda_graph.capture_begin(None, capture_error_mode="global")

    def __exit__(self, *_: Any) -> None:
        self.cuda_graph.capture_end()


class Replayed:
    """Whose method is called."""

    def __init__(self) -> None:
        self.keys: list[int] = []

    def tell(self, key: int) -> None:
        self.keys.append(key)


def capturing(graphs: Graphs) -> bool:
    """A function, for the type checker: the property changes."""
    return graphs.capturing


@pytest.fixture(autouse=True)
def classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    unhook_all()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    yield
    unhook_all()


def test_captures_and_replays_are_seen() -> None:
    graphs, replayed = Graphs(), Replayed()
    hook_graphs(graphs, replayed.tell)
    graph = CUDAGraph()
    with Context(graph):
        assert (capturing(graphs), graphs.closed) == (True, True)
    assert capturing(graphs) is False
    graph.replay()
    assert not graphs.closed
    assert replayed.keys == [id(graph)]
    assert CUDAGraph.replays == 1


def test_captures_that_raise_end() -> None:
    graphs, replayed = Graphs(), Replayed()
    hook_graphs(graphs, replayed.tell)
    with pytest.raises(RuntimeError), Context(CUDAGraph()):
        raise RuntimeError
    assert capturing(graphs) is False
    graph = CUDAGraph()
    graph.fails = True
    with pytest.raises(RuntimeError, match="no capture"):
        graph.capture_begin()
    assert not graphs.closed


def test_a_capture_waits_for_whoever_asks_the_device() -> None:
    lock = threading.RLock()
    graphs, replayed = Graphs(lock), Replayed()
    hook_graphs(graphs, replayed.tell)
    begun = threading.Event()

    def capture() -> None:
        CUDAGraph().capture_begin()
        begun.set()

    with lock:
        thread = threading.Thread(target=capture)
        thread.start()
        assert not begun.wait(0.1)
    assert begun.wait(5)
    thread.join()


def test_recorders_of_a_process_are_all_told_while_they_live() -> None:
    first, second, gone = Graphs(), Graphs(), Graphs()
    tells = [Replayed() for _ in range(3)]
    for one, tell in zip((first, second, gone), tells, strict=True):
        hook_graphs(one, tell.tell)
    names = set(REGISTRY)
    del gone, one
    gc.collect()
    graph = CUDAGraph()
    with Context(graph):
        assert first.capturing
        assert second.capturing
    graph.replay()
    assert [tell.keys for tell in tells] == [[id(graph)], [id(graph)], []]
    assert names == {"graph_capture", "graph_captured", "graph_replay"}


def stand_in_capture() -> Any:
    """As vLLM's BreakableCUDAGraphCapture: it keeps the bound replay of each piece, between parts that run eagerly."""

    class Capture:
        def __init__(self) -> None:
            self.segments: list[Callable[[], Any]] = []

        def __enter__(self) -> Any:
            self.begin()
            return self

        def __exit__(self, *_: Any) -> None:
            self.end()

        def begin(self) -> None:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.capture_begin()

        def end(self) -> None:
            self.graph.capture_end()
            self.segments.append(self.graph.replay)
            del self.graph

        def add_eager(self, run: Callable[[], Any]) -> Any:
            self.end()
            result = run()
            self.segments.append(run)
            self.begin()
            return result

        def replay(self) -> None:
            for run in self.segments:
                run()

    return Capture()


def vllms_own_capture() -> Any:
    from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphCapture  # noqa: PLC0415

    return BreakableCUDAGraphCapture()


@pytest.mark.parametrize("breakable", [stand_in_capture, vllms_own_capture])
def test_bound_replays_that_vllm_keeps_are_seen(breakable: Callable[[], Any]) -> None:
    """Two layers in graphs, one in an eager part between them, replayed twice with other routing."""
    sink = Kept()
    recorder = Recorder(lambda _: [sink], sample_every=0)
    recorder.model_loaded(identity(3))
    hook_graphs(recorder.graphs, recorder.replayed)
    tensors = [torch.zeros(2, 2, dtype=torch.int32) for _ in range(3)]

    def layer(number: int) -> None:
        recorder.routed(RoutingTensors(number, EXPERTS, tensors[number], None))

    capture = breakable()
    with capture:
        layer(0)
        capture.add_eager(lambda: layer(1))
        layer(2)
    gc.collect()  # vLLM keeps no graph but by its bound method
    before = CUDAGraph.replays
    for step in range(2):
        recorder.begin_step(2, 1, 0, 2)
        for number, tensor in enumerate(tensors):
            tensor[:] = torch.tensor([number, number + 1 + step])
        capture.replay()
        recorder.forward_done()
        recorder.end_step()
    assert CUDAGraph.replays == before + 4
    assert {place: np.flatnonzero(row).tolist() for place, row in sink.counts().items()} == {
        (step, number): [number, number + 1 + step] for step in range(2) for number in range(3)
    }
    assert recorder.lost == {}


def test_pytorchs_own_callback_sees_replays_bound_before_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.14 calls back from inside ``replay``; and graphs that were there first are named."""
    callbacks: list[Callable[[Any], None]] = []

    class Calling(CUDAGraph):
        def replay(self) -> None:
            for one in list(callbacks):
                one(self)

    class Handle:
        def __init__(self, one: Callable[[Any], None]) -> None:
            callbacks.append(one)
            self.one = one

        def remove(self) -> None:
            callbacks.remove(self.one)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Calling)
    monkeypatch.setattr(torch.cuda.graphs, "CUDAGraph", Calling)
    monkeypatch.setattr(torch.cuda.graphs, "register_graph_replay_start_hook", Handle, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    warned: list[str] = []
    monkeypatch.setattr(logger(), "warning", lambda text, *values: warned.append(text % values))
    early = Calling()
    bound = early.replay
    graphs, replayed = Graphs(), Replayed()
    hook_graphs(graphs, replayed.tell)
    hook_graphs(other := Graphs(), (also := Replayed()).tell)
    bound()
    assert (replayed.keys, also.keys) == ([id(early)], [id(early)])
    assert warned == ["1 CUDA graphs were captured before nvtxmoe came: steps that replay them have no counts"]
    assert other.closed is False
    unhook_all()
    assert callbacks == []


def test_a_callback_that_raises_is_off_and_the_replay_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boom(Replayed):
        def tell(self, key: int) -> None:
            raise RuntimeError("boom")

    callbacks: list[Callable[[Any], None]] = []

    def register(one: Callable[[Any], None]) -> Any:
        callbacks.append(one)
        return SimpleNamespace(remove=callbacks.clear)

    monkeypatch.setattr(torch.cuda.graphs, "CUDAGraph", CUDAGraph)
    monkeypatch.setattr(torch.cuda.graphs, "register_graph_replay_start_hook", register, raising=False)
    graphs, boom = Graphs(), Boom()
    hook_graphs(graphs, boom.tell)
    callbacks[0](CUDAGraph())
    assert REGISTRY["graph_replay"].failure == "RuntimeError: boom"
    callbacks[0](CUDAGraph())


def test_torch_has_what_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {"capture_begin", "capture_end", "replay"} <= set(vars(torch.cuda.CUDAGraph))
    source = inspect.getsource(torch.cuda.graphs.graph)  # which goes through them
    assert "self.cuda_graph.capture_begin(" in source
    assert "self.cuda_graph.capture_end()" in source
