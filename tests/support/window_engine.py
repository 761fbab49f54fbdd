"""A stand-in for an engine whose ranks record in windows: recorders in this process, each with its socket."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from nvtxmoe.capture.recording.window_control import WindowControl
from nvtxmoe.capture.recording.windows import Windows
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from nvtxmoe.capture.sinks import Sink
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.startup.window_socket import WindowSocket
from nvtxmoe.formats.window_socket import WINDOWS

LAYERS, EXPERTS, TOP_K = 2, 6, 2


def routing(step: int, layer: int, tokens: int) -> torch.Tensor:
    """Expert ids, int32 [tokens, TOP_K]: other ones in every step, the same on all ranks."""
    chance = np.random.default_rng((step, layer))
    return torch.from_numpy(np.stack([chance.permutation(EXPERTS)[:TOP_K] for _ in range(tokens)]).astype(np.int32))


def tokens_of(step: int) -> int:
    """Tokens of a step."""
    return 1 + step % 5


def expected(steps: range) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Counts of these steps: [LAYERS, EXPERTS]."""
    counts = np.zeros((LAYERS, EXPERTS), np.int64)
    for step, layer in itertools.product(steps, range(LAYERS)):
        counts[layer] += np.bincount(routing(step, layer, tokens_of(step)).numpy().ravel(), minlength=EXPERTS)
    return counts


class Rank:
    """One tensor-parallel rank with a recorder, and a socket unless ``listens`` is false."""

    def __init__(
        self,
        session: Path,
        rank: int,
        ranks: int,
        *,
        shared: Sequence[Sink] = (),
        always: Sequence[Sink] = (),
        emit: frozenset[str] = frozenset({"counts", "topk"}),
        sample_every: int = 3,
        listens: bool = True,
    ) -> None:
        self.session, self.rank = session, rank
        self.windows = Windows(always, shared, self._journal)
        self.recorder = Recorder(lambda _: self.windows, sample_every=sample_every, emit=emit)
        self.control = WindowControl(self.recorder, self.windows)
        layers = tuple(LayerInfo(n, f"layers.{n}", EXPERTS, TOP_K) for n in range(LAYERS))
        self.recorder.model_loaded(Identity(rank, ranks, rank, ranks, layers=layers))
        self.socket = WindowSocket(session, rank, self.control) if listens else None

    def _journal(self, number: int) -> list[Sink]:
        return [JournalSink(self.session / WINDOWS / str(number), self.rank, 0.05)]

    def begin(self) -> None:
        """A step begins, and its forward runs."""
        step = self.recorder.steps
        tokens = tokens_of(step)
        self.recorder.begin_step(tokens, 1, tokens, 0)
        for layer in range(LAYERS):
            if self.recorder.listens(layer):
                self.recorder.routed(RoutingTensors(layer, EXPERTS, routing(step, layer, tokens), None))
        self.recorder.forward_done()

    def end(self) -> None:
        """The step ends."""
        self.recorder.end_step()

    def step(self, number: int = 1) -> None:
        """Run steps."""
        for _ in range(number):
            self.begin()
            self.end()


class Serving:
    """Ranks that run steps at the same time, each in a thread of its own, in lockstep but for a step, until it ends."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self._ends = threading.Event()
        self._together = threading.Barrier(len(ranks))
        self._threads = [threading.Thread(target=self._run, args=(rank,)) for rank in ranks]

    def _run(self, rank: Rank) -> None:
        while True:
            rank.begin()
            try:
                self._together.wait()
            except threading.BrokenBarrierError:
                rank.end()
                return
            rank.end()
            time.sleep(0.0005 * rank.rank)
            if self._ends.is_set():
                self._together.abort()

    def __enter__(self) -> Serving:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
