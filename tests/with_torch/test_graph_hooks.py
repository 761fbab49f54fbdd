"""The hooks on PyTorch's own graph classes, with stand-ins beneath them: there is no GPU here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nvtxmoe.capture.graphs import Graphs, hook_graphs
from nvtxmoe.capture.hooks import REGISTRY, unhook_all


class CUDAGraph:
    """As torch.cuda.CUDAGraph."""

    replays = 0

    def replay(self) -> None:
        CUDAGraph.replays += 1


class Context:
    """As torch.cuda.graph: a context manager around a capture."""

    def __init__(self, cuda_graph: CUDAGraph) -> None:
        self.cuda_graph = cuda_graph

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


def capturing(graphs: Graphs) -> bool:
    """A function, for the type checker: the property changes."""
    return graphs.capturing


@pytest.fixture(autouse=True)
def classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    unhook_all()
    monkeypatch.setattr(torch.cuda.graphs, "graph", Context)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CUDAGraph)
    yield
    unhook_all()


def test_captures_and_replays_are_seen() -> None:
    graphs = Graphs()
    replayed: list[int] = []
    hook_graphs(graphs, replayed.append)
    graph = CUDAGraph()
    with Context(graph):
        assert graphs.capturing
    assert capturing(graphs) is False
    graph.replay()
    assert replayed == [id(graph)]
    assert CUDAGraph.replays == 1


def test_a_capture_that_raises_ends() -> None:
    graphs = Graphs()
    hook_graphs(graphs, lambda _: None)
    with pytest.raises(RuntimeError), Context(CUDAGraph()):
        raise RuntimeError
    assert capturing(graphs) is False


def test_two_recorders_in_a_process() -> None:
    first, second = Graphs(), Graphs()
    for graphs in (first, second):
        hook_graphs(graphs, lambda _: None)
    with Context(CUDAGraph()):
        assert first.capturing
        assert second.capturing
    assert (capturing(first), capturing(second)) == (False, False)
    assert len(REGISTRY) == 6


def test_torch_has_what_is_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert isinstance(torch.cuda.graphs.graph, type)
    assert {"__enter__", "__exit__"} <= set(vars(torch.cuda.graphs.graph))
    assert callable(torch.cuda.CUDAGraph.replay)
