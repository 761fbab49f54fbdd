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
    rows = min((one.own_rows for one in routed), default=0)
    return StepTensors(routed, key, rows, any(one.token_offset for one in routed))


_NOTHING = StepTensors((), None, 0, divided=False)


class StepRouting:
    """Collects references while a forward runs.

    Parameters:
        wanted: whether a layer is recorded.
        hide: called with a layer and why it can't be recorded; the layer must not be wanted afterwards.
        lock: see ``Graphs``.
    """

    def __init__(
        self,
        wanted: Callable[[int], bool],
        hide: Callable[[int, str], None],
        lock: threading.RLock | None = None,
    ) -> None:
        self.graphs = Graphs(lock)
        self._wanted = wanted
        self._hide = hide
        self._eager: dict[tuple[int, int], Routed] | None = None  # None: no forward runs
        self._replays: list[int] = []
        self._merged: dict[tuple[int, ...], StepTensors] = {}
        self._keys = itertools.count()
        self._gone = 0

    def listens(self, layer: int) -> bool:
        """Whether what a router chooses now is to be kept."""
        return (self._eager is not None or self.graphs.capturing) and self._wanted(layer)

    def begin(self) -> None:
        """A forward begins."""
        self._eager, self._replays = {}, []

    def add(self, one: Routed) -> None:
        """A router chose: kept for this step, or under the graph that is being captured."""
        if not self.listens(one.layer):
            return
        place = one.layer, one.token_offset
        if self.graphs.capturing:
            self.graphs.keep(one)
        elif self._eager is not None and place in self._eager:
            del self._eager[place]
            self._hide(one.layer, REPEATED)
        elif self._eager is not None:
            self._eager[place] = one

    def replayed(self, graph: int) -> None:
        """A graph is replayed as part of the forward."""
        if self._eager is not None and self.graphs.has_routing(graph):
            self._replays.append(graph)

    def end(self) -> StepTensors:
        """The forward's routing; nothing of a forward that did not begin."""
        if self._eager is None:
            return _NOTHING
        eager, replays = self._eager, tuple(self._replays)
        self._eager, self._replays = None, []
        of_graphs = self._of_graphs(replays)
        if not eager:
            return of_graphs
        return _tensors(self._together(of_graphs.routed, tuple(eager.values())), None)

    def forget_merged(self) -> None:
        """What is wanted has changed."""
        self._merged.clear()

    def _of_graphs(self, replays: tuple[int, ...]) -> StepTensors:
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

    def _together(self, some: tuple[Routed, ...], more: tuple[Routed, ...]) -> tuple[Routed, ...]:
        places = {(one.layer, one.token_offset) for one in some} & {(one.layer, one.token_offset) for one in more}
        for layer in {layer for layer, _ in places}:
            self._hide(layer, REPEATED)
        for layer in overwritten((*some, *more)):
            self._hide(layer, OVERWRITTEN)
        return tuple(one for one in (*some, *more) if self._wanted(one.layer))
