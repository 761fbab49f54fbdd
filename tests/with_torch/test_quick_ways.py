"""Arrival by flags: what is tried out before it is used, and what is read when; with a stand-in for the kernel."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording import counts_memory, quick_ways
from nvtxmoe.capture.recording.counts_memory import ALIGNED
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.launch import Launch
from nvtxmoe.capture.recording.quick_ways import Ways, try_out
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, captured, histogram, recorder, replay
from tests.with_torch.test_step_cost import graph_of

device = stand_ins.device  # the fixture

SHAPES = [(8, 2), (6, 4)]


class Kernel:
    """Counts as the kernel does, at once; its flags are set then, later or never."""

    def __init__(self) -> None:
        self.sets_flags, self.counts_right, self.fails = True, True, ""
        self.late: list[Any] = []
        self.flagged: list[bool] = []

    def __call__(self, launch: Launch, table: Any, out: torch.Tensor, num_tokens: int) -> None:
        """Count."""
        self.flagged.append(launch.flagged)
        if launch.flagged and self.fails:
            raise RuntimeError(self.fails)
        histogram(launch, table, out, num_tokens)
        if not self.counts_right and launch.flagged:
            out[0] += 1
        padded = -(-out.numel() // ALIGNED) * ALIGNED
        flags = (ctypes.c_int32 * launch.programs).from_address(out.data_ptr() + padded * out.element_size())
        assert not launch.flagged or not any(flags), "the flags of the step before are still set"
        if launch.flagged:
            self.late.append(flags)
            if self.sets_flags:
                self.arrive()

    def arrive(self) -> None:
        """Set the flags of all launches."""
        for flags in self.late:
            flags[:] = [1] * len(flags)
        self.late.clear()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    tensor = torch.tensor

    def on_the_cpu(values: Any, device: str | None = None, **more: Any) -> torch.Tensor:
        assert device in (None, "cuda")
        return tensor(values, **more)

    def synchronize(*_: Any) -> None:
        Event.ready = True

    monkeypatch.setattr(torch, "tensor", on_the_cpu)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(quick_ways, "flags_are_ordered", lambda: True)
    return Kernel()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of capture."""
    lines: list[str] = []
    monkeypatch.setattr(logger(), "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_flags_are_taken_where_they_count_right(kernel: Kernel, warnings: list[str]) -> None:
    assert try_out(CudaCounter(kernel), SHAPES) == Ways(driver=True, flags=True)
    assert kernel.flagged == [True] * 6
    assert warnings == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sets_flags": False}, "gave no counts when it was tried out"),
        ({"counts_right": False}, "gave wrong counts when it was tried out"),
        ({"fails": "no such instruction"}, "failed when it was tried out: RuntimeError: no such instruction"),
    ],
)
def test_events_are_used_where_flags_are_wrong(
    kernel: Kernel, wrong: dict[str, Any], said: str, warnings: list[str]
) -> None:
    vars(kernel).update(wrong)
    counter = CudaCounter(kernel)
    assert try_out(counter, SHAPES) == Ways(driver=True)  # the launch by the driver is another matter
    (line,) = warnings
    assert f"launches by the driver with flags of the kernel {said}" in line
    assert counter.oldest() is None


def test_flags_are_not_even_tried_where_memory_is_read_out_of_order(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_ways, "flags_are_ordered", lambda: False)
    assert try_out(CudaCounter(kernel), SHAPES) == Ways(driver=True)
    assert not any(kernel.flagged)


@pytest.mark.parametrize(("machine", "ordered"), [("x86_64", True), ("aarch64", False)])
def test_processors_that_read_in_order(monkeypatch: pytest.MonkeyPatch, machine: str, ordered: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert counts_memory.flags_are_ordered() is ordered


def made_with(kernel: Kernel) -> tuple[Any, Any, CudaCounter]:
    """A recorder whose kernel sets flags."""
    made, sink, _ = recorder()
    counter = CudaCounter(kernel)
    counter.use(Ways(flags=True))
    made._counter = counter
    return made, sink, counter


def no_event(*_: Any) -> None:
    raise AssertionError("an event")


def test_counts_are_sent_when_all_flags_are_set_and_no_event_is_asked(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("record", "query", "synchronize"):
        monkeypatch.setattr(Event, name, no_event)
    made, sink, _ = made_with(kernel)
    graph, tensors = captured(made)
    kernel.sets_flags = False
    replay(made, graph, tensors, (1, 7))
    assert sink.counts() == {}
    kernel.late[0][0] = 1  # the other layer's program still runs
    made.send_arrived()
    assert sink.counts() == {}
    kernel.arrive()
    made.send_arrived()
    assert sorted(sink.counts()) == [(0, 0), (0, 1)]
    kernel.sets_flags = True
    for number in range(5):  # the same memory, again and again
        replay(made, graph, tensors, (number, 7))
    assert [sink.counts()[step, 0].index(1) for step in range(1, 6)] == list(range(5))


def test_graphs_of_one_shape_use_each_others_memory_with_flags(kernel: Kernel) -> None:
    made, sink, _ = made_with(kernel)
    first, second = graph_of(made, 0), graph_of(made, 0)
    for number in range(6):
        replay(made, *(first if number % 2 else second), (number, 7))
    assert [sink.counts()[step, 0].index(1) for step in range(6)] == list(range(6))


def test_a_sampled_step_waits_for_its_event_too(kernel: Kernel) -> None:
    made, sink, _ = made_with(kernel)
    made._sample_every = 2
    graph, tensors = captured(made)
    for number in range(3):
        replay(made, graph, tensors, (number, 7))
    assert sink.counts() == {}  # step 0 is sampled, and steps are sent in their order
    Event.ready = True
    made.send_arrived()
    assert [sink.counts()[step, 0].index(1) for step in range(3)] == [0, 1, 2]
    assert {int(rows["step"][0]) for rows in sink.of("moe.topk")} == {0, 2}


@pytest.mark.parametrize("arrives", [True, False])
def test_at_the_end_flags_are_waited_for(kernel: Kernel, monkeypatch: pytest.MonkeyPatch, arrives: bool) -> None:
    made, sink, counter = made_with(kernel)
    graph, tensors = captured(made)
    kernel.sets_flags = False
    replay(made, graph, tensors, (1, 7))
    waits: list[Callable[[], None]] = [lambda: None, kernel.arrive]
    monkeypatch.setattr(counts_memory, "LOOKS_S", 0.05)
    monkeypatch.setattr(time, "sleep", lambda _: waits.pop(0)() if arrives and waits else None)
    if arrives:
        made.settle()
        assert len(sink.counts()) == 2
    else:
        with pytest.raises(RuntimeError, match="the counts of a step have not arrived"):
            made.settle()
        assert counter.oldest() == 0
