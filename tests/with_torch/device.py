"""Stand-ins for a GPU: memory, events, graphs and kernels; every call that waits for the device is forbidden."""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import pytest
import torch

from nvtxmoe.capture.hooks import unhook_all
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.routing_tensors import RoutingTensors
from tests.with_torch.events import EXPERTS, Kept, identity


class Graph:
    """Stands for a torch.cuda.CUDAGraph."""


class Event:
    """A CUDA event that is done when the test says so; waiting for it is a failure."""

    ready = False
    may_wait = False

    def record(self) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        """As the test says."""
        return Event.ready

    def synchronize(self) -> None:
        """The host waits."""
        assert Event.may_wait, "the host waits for the device"


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU memory in the place of pinned memory, our events, and every blocking call forbidden."""
    unhook_all()
    empty = torch.empty

    def pinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        assert pin_memory, "memory that is not pinned would make copies block"
        return empty(*args, **kwargs)

    def blocks(*_: Any, **__: Any) -> Any:
        raise AssertionError("a blocking call on the serving path")

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", blocks)
    for name in ("item", "cpu", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, blocks)
    copy = torch.Tensor.copy_

    def copied(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking, "a blocking copy on the serving path"
        return copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    Event.ready = Event.may_wait = False


def histogram(launch: Launch, table: Any, out: torch.Tensor, num_tokens: int) -> None:
    """What the kernel does, where there is none: it reads the addresses, as the kernel does."""
    flat = out.numpy().reshape(len(launch.layers), launch.experts)
    flat[:] = 0
    for row, address in zip(flat, table.numpy().tolist(), strict=True):
        for experts in chosen(launch, address, num_tokens):
            for expert in experts:
                row[expert] += 1


def chosen(launch: Launch, address: int, num_tokens: int) -> list[list[int]]:
    """The experts of each token at an address."""
    item = {2: ctypes.c_int16, 4: ctypes.c_int32, 8: ctypes.c_int64}[launch.item_bytes]
    token_bytes = launch.row_stride * launch.item_bytes
    return [list((item * launch.top_k).from_address(address + at * token_bytes)) for at in range(num_tokens)]


def pairs(launch: Launch, table: Any, squares: torch.Tensor, num_tokens: int) -> None:
    """What the kernel of pairs does."""
    for square, address in zip(squares.numpy(), table.numpy().tolist(), strict=True):
        for experts in chosen(launch, address, num_tokens):
            for one, other in itertools.combinations(sorted(experts), 2):
                square[one, other] += 1


def recorder() -> tuple[Recorder, Kept, CudaCounter]:
    """A recorder that counts on the stand-in device."""
    sink = Kept()
    made = Recorder(lambda _: [sink], sample_every=0)
    made.model_loaded(identity())
    counter = CudaCounter(histogram)
    made._counter = counter
    return made, sink, counter


def routed(layer: int, tensor: torch.Tensor) -> RoutingTensors:
    return RoutingTensors(layer, EXPERTS, tensor, tensor.float())


def replay(made: Recorder, graph: Graph, tensors: list[torch.Tensor], *values: tuple[int, int]) -> None:
    """A step that replays a graph: its tensors get new content, padding keeps the old."""
    made.begin_step(len(values), 1, 0, len(values))
    made.replayed(id(graph))
    for tensor in tensors:
        tensor[: len(values)] = torch.tensor(values, dtype=tensor.dtype)
    made.forward_done()
    made.end_step()
    made.send_arrived()  # else its thread does


def captured(made: Recorder, rows: int = 4) -> tuple[Graph, list[torch.Tensor]]:
    """A graph with both layers in it."""
    graph = Graph()
    tensors = [torch.zeros(rows, 2, dtype=torch.int32) for _ in (0, 1)]
    made.graphs.begin(graph)
    for layer, tensor in enumerate(tensors):
        assert made.listens(layer)
        made.routed(routed(layer, tensor))
    made.graphs.end(graph)
    assert not made.listens(0)
    return graph, tensors
