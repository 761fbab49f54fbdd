"""Kernels and when they run: pairs, what is compiled ahead, counts that wait for others; stand-ins for the device."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch

from nvtxmoe.capture.recording import sending
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.run_identity import Identity, LayerInfo
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, captured, histogram, pairs, replay, routed
from tests.with_torch.events import EXPERTS, Kept, identity

device = stand_ins.device  # the fixture


def test_pairs_are_added_up_from_the_same_tables() -> None:
    sink = Kept()
    made = Recorder(lambda _: [sink], sample_every=0, emit=frozenset({"counts", "pairs"}))
    made.model_loaded(identity())
    made._counter = CudaCounter(histogram, pairs)
    Event.ready = Event.may_wait = True
    graph, tensors = captured(made)
    replay(made, graph, tensors, (0, 1), (2, 1))
    replay(made, graph, tensors, (1, 0))
    made.close()
    rows = sink.of("moe.pairs")
    assert [(int(r["layer"]), int(r["first_step"]), int(r["last_step"]), int(r["num_tokens"])) for r in rows] == [
        (0, 0, 1, 3),
        (1, 0, 1, 3),
    ]
    for row in rows:
        square = dict(zip(itertools.combinations(range(EXPERTS), 2), row["pairs"].tolist(), strict=True))
        assert {pair: n for pair, n in square.items() if n} == {(0, 1): 2, (1, 2): 1}


def test_pairs_where_there_is_no_kernel_for_the_tensors() -> None:
    sink = Kept()
    made = Recorder(lambda _: [sink], sample_every=0, emit=frozenset({"pairs"}))
    made.model_loaded(identity(layers=1))
    made._counter = CudaCounter(histogram, pairs)
    Event.ready = Event.may_wait = True
    made.begin_step(1, 1, 0, 1)
    made.routed(routed(0, torch.tensor([[3, 1]], dtype=torch.int8)))
    made.forward_done()
    made.close()
    (row,) = sink.of("moe.pairs")
    assert sum(row["pairs"].tolist()) == 1


def test_kernels_are_compiled_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **said: zeros(*shape, **(said | {"device": "cpu"})))

    def counting(launch: Launch, *_: Any) -> None:
        seen.append(("count", launch.experts, launch.top_k))

    def pairing(launch: Launch, *_: Any) -> None:
        seen.append(("pairs", launch.experts, launch.top_k))

    made = Recorder(lambda _: [Kept()], emit=frozenset({"counts", "pairs"}))
    made.model_loaded(identity())
    made._counter = CudaCounter(counting, pairing)
    Event.ready = True
    made.prepare_for_gpu()
    assert seen == [("count", EXPERTS, 2), ("pairs", EXPERTS, 2)]
    assert list(made._counter.drain(wait=True)) == []  # nothing of it is counted
    assert made.steps == 0


def test_what_is_compiled_ahead_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that sends in pauses must not take it for one."""
    monkeypatch.setattr(sending, "IDLE_S", 0.01)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **said: zeros(*shape, **(said | {"device": "cpu"})))

    def slow(launch: Launch, table: Any, out: torch.Tensor, num_tokens: int) -> None:
        time.sleep(0.1)  # the thread runs meanwhile
        histogram(launch, table, out, num_tokens)

    sink = Kept()
    made = Recorder(lambda _: [sink])
    made.model_loaded(Identity(layers=(LayerInfo(0, "layers.0", EXPERTS, 2, num_physical=EXPERTS + 2),)))
    made._counter = CudaCounter(slow)
    Event.ready = True
    made.prepare_for_gpu()
    time.sleep(0.1)
    assert sink.counts() == {}
