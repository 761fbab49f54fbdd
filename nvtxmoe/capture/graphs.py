"""CUDA graphs: which routing tensors belong to which graph, and which graphs a step has replayed.

Python runs when a graph is captured, not when it is replayed. While the tensors that a router gave at capture are
held, the graph's memory pool does not use their memory again, and after each replay they hold that step's routing.
Nothing is added to the graph.
"""

from __future__ import annotations

import weakref
from typing import Any

from nvtxmoe.capture.hooks import REGISTRY, Hook, registered, wrap
from nvtxmoe.capture.routed import Routed

#: Memory that all graphs together may keep from being used again. Past it weights are let go, then ids.
MOST_HELD_BYTES = 64 << 20


class Graphs:
    """Routing by graph.

    Attributes:
        held_bytes: what the held tensors occupy.
        without_weights, without_ids: tensors let go to stay within ``MOST_HELD_BYTES``.
    """

    def __init__(self) -> None:
        self.held_bytes = 0
        self.without_weights = 0
        self.without_ids = 0
        self.gone = 0
        self._capturing: list[int] = []
        self._routed: dict[int, dict[int, Routed]] = {}
        self._repeated: dict[int, set[int]] = {}

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return bool(self._capturing)

    def begin(self, graph: Any) -> None:
        """The capture of a graph begins. One that is captured again starts anew."""
        key = id(graph)
        self._forget(key)
        self._routed[key] = {}
        weakref.finalize(graph, self._forget, key)
        self._capturing.append(key)

    def end(self, graph: Any) -> None:
        """It ends."""
        if id(graph) in self._capturing:
            self._capturing.remove(id(graph))

    def keep(self, one: Routed) -> None:
        """A router chose while a graph is captured: hold its tensors under that graph."""
        of_graph = self._routed[self._capturing[-1]]
        if one.layer in of_graph:
            self._repeated.setdefault(self._capturing[-1], set()).add(one.layer)
            return
        if self.held_bytes + one.held_bytes > MOST_HELD_BYTES and one.weights is not None:
            self.without_weights += 1
            one = Routed(one.layer, one.num_experts, one.ids, None, one.physical, one.num_physical, one.start)
        if self.held_bytes + one.held_bytes > MOST_HELD_BYTES:
            self.without_ids += 1
            return
        self.held_bytes += one.held_bytes
        of_graph[one.layer] = one

    def routed(self, key: int) -> dict[int, Routed]:
        """What a graph's replay leaves behind, by layer."""
        return self._routed.get(key, {})

    def repeated(self, key: int) -> set[int]:
        """Layers that ran more than once in a graph."""
        return self._repeated.get(key, set())

    def _forget(self, key: int) -> None:
        for one in self._routed.pop(key, {}).values():
            self.held_bytes -= one.held_bytes
        self._repeated.pop(key, None)
        self.gone += 1


def hook_graphs(graphs: Graphs, replayed: Any) -> None:
    """Hook PyTorch's own graph classes; ``replayed`` is called with the graph's key before each replay."""
    import torch  # noqa: PLC0415  only where there is a model

    def hook(name: str, enter: Any, leave: Any = lambda *_: None) -> Hook:
        number = sum(other.split("-")[0] == name for other in REGISTRY)  # several recorders in a process
        return registered(Hook(f"{name}-{number + 1}" if number else name, enter, leave))

    begin = hook("graph_capture", lambda context: context, lambda context, _: graphs.begin(context.cuda_graph))
    end = hook("graph_captured", lambda context, *_, **__: graphs.end(context.cuda_graph))
    replay = hook("graph_replay", lambda graph, *_, **__: replayed(id(graph)))
    wrap(torch.cuda.graphs.graph, "__enter__", begin)
    wrap(torch.cuda.graphs.graph, "__exit__", end)
    wrap(torch.cuda.CUDAGraph, "replay", replay)
