"""Launches without Triton's Python, with stand-ins for the launchers of Triton 3.8 and of earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nvtxmoe.capture.recording import direct_launch
from nvtxmoe.capture.recording.direct_launch import Prepared, direct_launcher

REST = (2, 2, 8, 16, 4, 1024)
GRID = (3, 1, 1)


class Hooks:
    """Triton's chain of hooks."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *_: Any) -> None:
        """Call each."""


class Launcher:
    """Triton's CudaLauncher: Python around a C function."""

    def __init__(self, nested: bool, scratch: Any = None) -> None:
        self.nested, self.scratch, self.python_calls = nested, scratch, 0
        self.launched: list[tuple[Any, ...]] = []
        self.launch: Callable[..., None] = lambda *args: self.launched.append(args)

    def __call__(self, x: int, y: int, z: int, stream: Any, function: int, hooks: Hooks, *args: Any) -> None:
        """Launch."""
        self.python_calls += 1
        head = (x, y, z, stream, function, False, False)
        hooked = {"stream": stream}, hooks, hooks
        if self.nested:  # 3.8
            self.launch(*head, (4, 1, 0), *hooked, self.scratch, None, (1, 2), b"signature", args)
        else:
            self.launch(*head, self.scratch, None, (4, 1, 0), *hooked, *args)


class Compiled:
    """Triton's CompiledKernel."""

    function = 1234

    def __init__(self, nested: bool, scratch: Any = None) -> None:
        self.run, self.hooks = Launcher(nested, scratch), Hooks()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def runner(*args: Any, stream: Any = None) -> None:
            x, y, z = grid
            self.run(x, y, z, stream, self.function, self.hooks, *args)

        return runner


@pytest.mark.parametrize("nested", [True, False])
def test_triton_c_function_gets_what_triton_gives_it(nested: bool) -> None:
    compiled = Compiled(nested)
    launch = direct_launcher(compiled, GRID, REST)
    assert launch is not None
    assert compiled.run.launched == []  # nothing was launched to find out
    for table, out, rows, stream in ((11, 22, 5, 77), (11, 33, 6, 0)):
        compiled[GRID](table, out, rows, *REST, stream=stream)
        launch(table, out, rows, stream)
        by_triton, direct = compiled.run.launched[-2:]
        silent = [None if arg is compiled.hooks else arg for arg in by_triton]
        at = silent.index({"stream": stream})  # what only hooks get
        assert (direct[:at], list(direct[at + 1 :])) == (by_triton[:at], silent[at + 1 :])
    assert compiled.run.python_calls == 3  # ours were not among them


@pytest.mark.parametrize("nested", [True, False])
def test_another_way_is_taken_where_somebody_listens_or_a_launch_needs_memory(nested: bool) -> None:
    listening = Compiled(nested)
    listening.hooks.calls.append(print)
    assert direct_launcher(listening, GRID, REST) is None
    assert direct_launcher(Compiled(nested, torch.zeros(1)), GRID, REST) is None
    listening.run.launch(1)
    assert listening.run.launched == [(1,)]  # its own function is back


def test_a_launcher_of_another_form_is_left_alone() -> None:
    class Two(Compiled):
        """Launches twice."""

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            one = super().__getitem__(grid)

            def runner(*args: Any, stream: Any = None) -> None:
                one(*args, stream=stream)
                one(*args, stream=stream)

            return runner

    assert direct_launcher(Two(True), GRID, REST) is None
    assert direct_launcher(object(), GRID, REST) is None


def test_a_c_function_that_takes_no_numbers_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_launch, "raw_stream_function", lambda: {5: 77}.__getitem__)
    compiled = Compiled(True)
    tensors: list[Any] = []

    def picky(*args: Any) -> None:
        if not isinstance(args[-1][0], torch.Tensor):
            raise TypeError("a pointer must have data_ptr")
        tensors.append(args[-1][0])

    compiled.run.launch = picky
    prepared, table, out = Prepared(compiled, GRID, REST), torch.zeros(3), torch.zeros(24)
    for rows in (4, 5):
        prepared(torch.device("cuda", 5), table, out, rows)
    assert len(tensors) == 2
    assert tensors[0] is tensors[1] is table
