"""The launch by the CUDA driver: tried out at the start, used where it counts right; with stand-ins for the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.cuda_counter import CudaCounter
from nvtxmoe.capture.recording.launch import Launch
from tests.with_torch import device as stand_ins
from tests.with_torch.device import Event, captured, histogram, recorder, replay

device = stand_ins.device  # the fixture

SHAPES = [(8, 2), (6, 4)]


class Kernel:
    """Counts at once; once prepared, it can be launched into memory by the driver, which may do wrong."""

    def __init__(self) -> None:
        self.counts_right, self.fails, self.is_known = True, "", True
        self.launches: list[str] = []

    def __call__(self, launch: Launch, table: Any, out: torch.Tensor, num_tokens: int) -> None:
        """Launch by Triton."""
        self.launches.append("Triton")
        histogram(launch, table, out, num_tokens)
        launch.prepared["count"] = Prepared(self, launch)


class Prepared:
    """Stands for that of direct_launch."""

    def __init__(self, kernel: Kernel, launch: Launch) -> None:
        self.kernel, self.launch = kernel, launch

    def into(self, device: Any, table: Any, out: torch.Tensor) -> Callable[[int], None] | None:
        """Return the launch by the driver."""
        kernel = self.kernel

        def call(num_tokens: int) -> None:
            kernel.launches.append("driver")
            if kernel.fails:
                raise RuntimeError(kernel.fails)
            histogram(self.launch, table, out, num_tokens)
            if not kernel.counts_right:
                out[0] += 1

        return call if kernel.is_known else None


def on_the_cpu(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What makes a tensor of the CPU where one of a GPU is asked for."""

    def made(*args: Any, device: str | None = None, **more: Any) -> torch.Tensor:
        assert device in (None, "cuda")
        return make(*args, **more)

    return made


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel, and memory of the CPU where that of a GPU is asked for."""
    for name in ("tensor", "zeros"):
        monkeypatch.setattr(torch, name, on_the_cpu(getattr(torch, name)))
    Event.may_wait = True
    return Kernel()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings of capture."""
    lines: list[str] = []
    monkeypatch.setattr(logger(), "warning", lambda text, *values: lines.append(text % values))
    return lines


def launches_of_five_steps(kernel: Kernel) -> list[str]:
    """Warm a counter up, and replay a graph five times; the counts must be right."""
    made, sink, _ = recorder()
    counter = CudaCounter(kernel)
    counter.warm_up(SHAPES, pairs=False)
    assert counter.oldest() is None, "nothing of the trial is left to be sent"
    made._counter, Event.ready = counter, True
    graph, tensors = captured(made)
    kernel.launches.clear()
    for number in range(5):
        replay(made, graph, tensors, (number, 7))
    assert [sink.counts()[step, 0].index(1) for step in range(5)] == list(range(5))
    return kernel.launches


def test_the_driver_launches_where_it_counted_right(kernel: Kernel, warnings: list[str]) -> None:
    assert launches_of_five_steps(kernel) == ["Triton", *["driver"] * 4]  # the first prepares the launch
    assert warnings == []


def test_each_shape_is_tried_out_by_the_driver(kernel: Kernel) -> None:
    CudaCounter(kernel).warm_up(SHAPES, pairs=False)
    assert kernel.launches == ["Triton", "Triton", *["Triton", "driver", "driver"] * 2]  # to compile, then the trial


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"counts_right": False}, "gave wrong counts when they were tried out"),
        ({"fails": "no such function"}, "failed when they were tried out: RuntimeError: no such function"),
    ],
)
def test_triton_launches_where_the_driver_does_wrong(
    kernel: Kernel, warnings: list[str], wrong: dict[str, Any], told: str
) -> None:
    vars(kernel).update(wrong)
    assert launches_of_five_steps(kernel) == ["Triton"] * 5
    assert warnings == [f"counting takes more CPU time than it could: launches by the CUDA driver {told}"]


def test_triton_launches_where_the_launch_by_the_driver_is_not_known(kernel: Kernel, warnings: list[str]) -> None:
    kernel.is_known = False
    assert launches_of_five_steps(kernel) == ["Triton"] * 5
    assert warnings == []
