"""CUDA graphs: which routing tensors belong to which graph, and which graphs a step has replayed.

Python runs when a graph is captured, not when it is replayed. While the tensors that a router gave at capture are
held, the graph's memory pool does not use their memory again, and after each replay they hold that step's routing.
Nothing is added to the graph.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

from nvtxmoe.capture.hooks import REGISTRY, Hook, listen, registered, wrap
from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.router_logits import Routed, RouterLogits

#: Memory that all graphs together may keep from being used again. Past it weights are let go, then ids.
MOST_HELD_BYTES = 64 << 20
#: The same for router logits, of which a token has as many as there are experts.
MOST_LOGITS_BYTES = 512 << 20
#: Name of the hook on replays.
REPLAY = "graph_replay"


class Graphs:
    """Routing by graph.

    Parameters:
        lock: held by who asks the device for something: while a graph is captured nobody may, from any thread.

    Attributes:
        held_bytes: what the held tensors occupy; ``logits_bytes`` of it are router logits.
        without_weights, without_ids: tensors let go to stay within ``MOST_HELD_BYTES``.
        closed: whether the device must not be asked now.
    """

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self.held_bytes = 0
        self.logits_bytes = 0
        self.without_weights = 0
        self.without_ids = 0
        self.gone = 0
        self.lock = lock or threading.RLock()
        self._announced = 0
        self._capturing: list[int] = []
        self._routed: dict[int, dict[tuple[int, int], Routed]] = {}
        self._repeated: dict[int, set[int]] = {}

    @property
    def losses(self) -> dict[str, int]:
        """Number of tensors let go, by what is lost with them."""
        named = {
            "layers of graphs not kept, graphs holding too much": self.without_ids,
            "routing weights not kept, graphs holding too much": self.without_weights,
        }
        return {what: number for what, number in named.items() if number}

    @property
    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return bool(self._capturing)

    @property
    def closed(self) -> bool:
        """Whether a graph is being captured, or is about to be."""
        return bool(self._announced or self._capturing)

    def announce(self) -> None:
        """A capture is about to begin: whoever asks the device is waited for, and nobody does from here on."""
        with self.lock:
            self._announced += 1

    def withdraw(self) -> None:
        """What was announced has begun, or failed to."""
        self._announced = max(0, self._announced - 1)

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

    def keep(self, tensors: Routed) -> None:
        """A router chose while a graph is captured: hold its tensors under that graph."""
        of_graph = self._routed[self._capturing[-1]]
        place = tensors.layer, tensors.token_offset
        if place in of_graph:
            self._repeated.setdefault(self._capturing[-1], set()).add(tensors.layer)
            return
        if not self._has_room(tensors) and (less := tensors.without_weights()) is not tensors:
            self.without_weights += 1
            tensors = less
        if not self._has_room(tensors):
            self.without_ids += 1
            return
        self._add(tensors, 1)
        of_graph[place] = tensors

    def _has_room(self, tensors: Routed) -> bool:
        if isinstance(tensors, RouterLogits):
            return self.logits_bytes + tensors.held_bytes <= MOST_LOGITS_BYTES
        return self.held_bytes - self.logits_bytes + tensors.held_bytes <= MOST_HELD_BYTES

    def _add(self, tensors: Routed, sign: int) -> None:
        self.held_bytes += sign * tensors.held_bytes
        if isinstance(tensors, RouterLogits):
            self.logits_bytes += sign * tensors.held_bytes

    def routed(self, key: int) -> tuple[Routed, ...]:
        """Return what a graph's replay leaves behind, each layer once per micro-batch."""
        return tuple(self._routed.get(key, {}).values())

    def has_routing(self, key: int) -> bool:
        """Whether a graph's replay leaves anything behind."""
        return bool(self._routed.get(key))

    def repeated(self, key: int) -> set[int]:
        """Layers that ran more than once in a graph."""
        return self._repeated.get(key, set())

    def _forget(self, key: int) -> None:
        for tensors in self._routed.pop(key, {}).values():
            self._add(tensors, -1)
        self._repeated.pop(key, None)
        self.gone += 1


#: Who is told of captures and replays, while it lives: its graphs, an object, and the name of its method for replays.
#: A weak reference to the method itself takes several times as long to follow.
_listeners: list[tuple[weakref.ref[Graphs], weakref.ref[Any], str]] = []


def _live_graphs() -> list[Graphs]:
    """Graphs of the listeners that live."""
    live = [(graphs(), owner()) for graphs, owner, _ in _listeners]
    return [graphs for graphs, owner in live if graphs is not None and owner is not None]


def hook_graphs(graphs: Graphs, on_replay: Any) -> None:
    """Hook PyTorch's graphs, once a process; the listener is forgotten when it goes.

    ``capture_begin`` and ``capture_end`` are what every way of capturing calls, ``torch.cuda.graph`` too. Programs may
    keep a graph's bound ``replay`` (vLLM's breakable graphs do): PyTorch 2.14 and newer call back from inside
    ``replay``, whenever it was bound; older ones get a wrapper on the class, which bound methods hold from here on.

    Parameters:
        on_replay: a method, called with the graph's key before each replay.
    """
    import torch  # noqa: PLC0415  only where there is a model

    _listeners[:] = [listener for listener in _listeners if listener[0]() is not None]
    _listeners.append((weakref.ref(graphs), weakref.ref(on_replay.__self__), on_replay.__name__))

    def announce(graph: Any, *_: Any, **__: Any) -> Any:
        for kept_graphs in _live_graphs():
            kept_graphs.announce()
        return graph

    def begin(graph: Any, _: Any) -> None:
        for kept_graphs in _live_graphs():
            kept_graphs.begin(graph)
            kept_graphs.withdraw()

    def give_up(_: Any) -> None:
        for kept_graphs in _live_graphs():
            kept_graphs.withdraw()

    def end(graph: Any) -> None:
        for kept_graphs in _live_graphs():
            kept_graphs.end(graph)

    def replay(graph: Any, *_: Any, **__: Any) -> None:
        key = id(graph)
        for kept_graphs, owner, name in _listeners:  # ``_live_graphs`` would make lists in every replay
            listener = owner()
            if listener is not None and kept_graphs() is not None:
                getattr(listener, name)(key)

    owner = torch.cuda.CUDAGraph
    wrap(owner, "capture_begin", registered(Hook("graph_capture", announce, begin, give_up)))
    wrap(owner, "capture_end", registered(Hook("graph_captured", lambda g, *_, **__: g, lambda g, _: end(g), end)))
    _warn_of_earlier(owner)
    fresh = REPLAY not in REGISTRY
    hook = registered(Hook(REPLAY, replay))
    register = getattr(torch.cuda.graphs, "register_graph_replay_start_hook", None)
    if register is None or owner is not torch.cuda.graphs.CUDAGraph:
        wrap(owner, "replay", hook)
    elif fresh:
        listen(register, hook)


def _warn_of_earlier(owner: type) -> None:
    """Say so where graphs were captured before the hooks came: what was routed in them is not known."""
    import torch  # noqa: PLC0415

    if REPLAY in REGISTRY or not torch.cuda.is_initialized():
        return
    earlier_graphs = sum(
        issubclass(type(item), owner) for item in gc.get_objects()
    )  # isinstance would wake lazy proxies
    if earlier_graphs:
        logger().warning(
            "%d CUDA graphs were captured before nvtxmoe came: steps that replay them have no counts", earlier_graphs
        )
