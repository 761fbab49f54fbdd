"""Which routing tensors belong to the running step: those of eager layers, and those of the graphs it replayed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from nvtxmoe.capture.recording.cuda_graphs import Graphs
from nvtxmoe.capture.recording.router_logits import Routed, overwritten

#: Why a layer can't be recorded.
REPEATED = "it runs more than once per step on the same tokens (a draft model, for example)"
OVERWRITTEN = "the compiled model uses the memory of its router logits again before they can be read"


@dataclass(frozen=True)
class StepTensors:
    """The routing of a forward.

    Attributes:
        routed: each layer once per micro-batch.
        key: stands for these very tensors where they will come again (CUDA graphs), else None.
        rows: that each of the tensors has at least, from its first own row on.
        divided: whether the step ran as micro-batches.
    """

    routed: tuple[Routed, ...]
    key: Hashable | None
    rows: int
    divided: bool


def _tensors(routed: tuple[Routed, ...], key: Hashable | None) -> StepTensors:
    rows = min((tensors.own_rows for tensors in routed), default=0)
    return StepTensors(routed, key, rows, any(tensors.token_offset for tensors in routed))


_NOTHING = StepTensors((), None, 0, divided=False)


class StepRouting:
    """Collects references while a forward runs.

    Parameters:
        is_recorded: whether a layer is recorded.
        hide: called with a layer and why it can't be recorded; `is_recorded` must be false of it afterwards.
        lock: see ``Graphs``.
    """

    def __init__(
        self,
        is_recorded: Callable[[int], bool],
        hide: Callable[[int, str], None],
        lock: threading.RLock | None = None,
    ) -> None:
        self.graphs = Graphs(lock)
        self._is_recorded = is_recorded
        self._hide = hide
        self._eager: dict[tuple[int, int], Routed] | None = None  # None: no forward runs
        self._empty: dict[tuple[int, int], Routed] = {}  # used again: most steps replay graphs alone
        self._replays: list[int] = []
        self._merged: dict[tuple[int, ...], StepTensors] = {}
        self._keys = itertools.count()
        self._gone = 0

    def listens(self, layer: int) -> bool:
        """Whether what a router chooses now is to be kept."""
        return (self._eager is not None or self.graphs.capturing) and self._is_recorded(layer)

    def begin(self) -> None:
        """A forward begins."""
        if self._empty:  # the forward before did not come to its end
            self._empty = {}
        self._eager = self._empty
        self._replays.clear()

    def add(self, tensors: Routed) -> None:
        """A router chose: kept for this step, or under the graph that is being captured."""
        if not self.listens(tensors.layer):
            return
        place = tensors.layer, tensors.token_offset
        if self.graphs.capturing:
            self.graphs.keep(tensors)
        elif self._eager is not None and place in self._eager:
            del self._eager[place]
            self._hide(tensors.layer, REPEATED)
        elif self._eager is not None:
            self._eager[place] = tensors

    def replayed(self, graph: int) -> None:
        """A graph is replayed as part of the forward."""
        if self._eager is not None and self.graphs.has_routing(graph):
            self._replays.append(graph)

    def end(self) -> StepTensors:
        """The forward's routing; nothing of a forward that did not begin."""
        if self._eager is None:
            return _NOTHING
        eager, replays = self._eager, tuple(self._replays)
        self._eager = None
        of_graphs = self._merged.get(replays) if self.graphs.gone == self._gone else None
        if of_graphs is None:
            of_graphs = self._graph_tensors(replays)
        if not eager:
            return of_graphs
        self._empty = {}
        return _tensors(self._together(of_graphs.routed, tuple(eager.values())), None)

    def forget_merged(self) -> None:
        """What is wanted has changed."""
        self._merged.clear()

    def _graph_tensors(self, replays: tuple[int, ...]) -> StepTensors:
        if self.graphs.gone != self._gone:  # keys may come again for other graphs
            self._gone = self.graphs.gone
            self._merged.clear()
        known = self._merged.get(replays)
        if known is None:
            merged: tuple[Routed, ...] = ()
            for graph in replays:
                for layer in self.graphs.repeated(graph):
                    self._hide(layer, REPEATED)
                merged = self._together(merged, self.graphs.routed(graph))
            # A new key each time: graphs may come again at an old address, or with a layer hidden since.
            known = self._merged[replays] = _tensors(merged, next(self._keys))
        return known

    def _together(self, first: tuple[Routed, ...], more: tuple[Routed, ...]) -> tuple[Routed, ...]:
        recorded_twice = {(tensors.layer, tensors.token_offset) for tensors in first} & {
            (tensors.layer, tensors.token_offset) for tensors in more
        }
        for layer in {layer for layer, _ in recorded_twice}:
            self._hide(layer, REPEATED)
        for layer in overwritten((*first, *more)):
            self._hide(layer, OVERWRITTEN)
        return tuple(tensors for tensors in (*first, *more) if self._is_recorded(tensors.layer))
