"""The hooks on PyTorch's own graph classes, with stand-ins beneath them: there is no GPU here."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nvtxmoe.capture.hooks import REGISTRY, unhook_all
from nvtxmoe.capture.recording.cuda_graphs import Graphs, hook_graphs


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


def test_torch_has_what_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert {"capture_begin", "capture_end", "replay"} <= set(vars(torch.cuda.CUDAGraph))
    source = inspect.getsource(torch.cuda.graphs.graph)  # which goes through them
    assert "self.cuda_graph.capture_begin(" in source
    assert "self.cuda_graph.capture_end()" in source
