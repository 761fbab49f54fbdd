"""How the counting kernel is launched, with a stand-in for Triton: compiled once, then by addresses if possible."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nvtxmoe.capture.recording import direct_launch
from nvtxmoe.capture.recording.launch import Launch

Histogram = Callable[[Launch, torch.Tensor, torch.Tensor, int], None]


class Kernel:
    """A jitted kernel: calling it for a grid compiles it, the result launches it."""

    def __init__(self, takes_numbers: bool) -> None:
        self.takes_numbers = takes_numbers
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[tuple[Any, ...], Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def compile_and_launch(*args: Any, num_warps: int) -> Kernel:
            assert num_warps == 4
            self.compiled.append((grid, *args))
            return self

        def launch(*args: Any, stream: Any = None) -> None:
            if not self.takes_numbers and not isinstance(args[0], torch.Tensor):
                raise TypeError("a pointer must have data_ptr")
            self.launched.append((args, stream))

        return launch if len(grid) == 3 else compile_and_launch


@pytest.fixture
def histogram(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[Histogram, Kernel]]:
    def make(takes_numbers: bool) -> tuple[Histogram, Kernel]:
        kernel = Kernel(takes_numbers)
        triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
        monkeypatch.setattr(triton, "jit", lambda **_: lambda _: kernel, raising=False)
        monkeypatch.setattr(triton, "next_power_of_2", lambda n: 1 << (n - 1).bit_length(), raising=False)
        monkeypatch.setattr(triton, "language", language, raising=False)
        monkeypatch.setattr(language, "constexpr", object, raising=False)
        monkeypatch.setitem(sys.modules, "triton", triton)
        monkeypatch.setitem(sys.modules, "triton.language", language)
        monkeypatch.delitem(sys.modules, "nvtxmoe.capture.recording.triton_histogram", raising=False)
        module = importlib.import_module("nvtxmoe.capture.recording.triton_histogram")
        monkeypatch.delitem(sys.modules, "nvtxmoe.capture.recording.triton_histogram")
        monkeypatch.setattr(direct_launch, "raw_stream_function", lambda: {5: 77}.__getitem__)
        found: Histogram = module.histogram
        return found, kernel

    return make


def launch() -> Launch:
    return Launch((0, 1, 2), 8, 2, False, 2, 4, torch.device("cuda", 5))


REST = (2, 2, 8, 16, 4, 1024)


def test_later_launches_are_by_address(histogram: Callable[[bool], tuple[Histogram, Kernel]]) -> None:
    count, kernel = histogram(True)
    one, table, out = launch(), torch.zeros(3, dtype=torch.int64), torch.zeros(24, dtype=torch.int32)
    for tokens in (4, 5, 6):
        count(one, table, out, tokens)
    assert [(args[0], *args[3:]) for args in kernel.compiled] == [((3,), 4, *REST)]
    addresses = table.data_ptr(), out.data_ptr()
    assert kernel.launched == [((*addresses, tokens, *REST), 77) for tokens in (5, 6)]


def test_a_triton_that_takes_no_addresses_gets_tensors(histogram: Callable[[bool], tuple[Histogram, Kernel]]) -> None:
    count, kernel = histogram(False)
    one, table, out = launch(), torch.zeros(3, dtype=torch.int64), torch.zeros(24, dtype=torch.int32)
    for tokens in (4, 5, 6):
        count(one, table, out, tokens)
    assert len(kernel.compiled) == 1
    assert [(args[0] is table, args[1] is out, args[2], stream) for args, stream in kernel.launched] == [
        (True, True, 5, None),
        (True, True, 6, None),
    ]
