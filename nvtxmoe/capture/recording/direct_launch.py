"""Launches of a compiled Triton kernel without Triton's own Python around them, which takes longer than the launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.recording.current_stream import raw_stream_function

if TYPE_CHECKING:
    import torch

#: Launches a kernel: (address of the table, address of what comes out, rows, handle of the stream).
Launcher = Callable[[int, int, int, int], None]


class Prepared:
    """Launches of a compiled kernel, in the quickest of three ways that this Triton has."""

    def __init__(self, compiled: Any, grid: tuple[int, int, int], rest: tuple[Any, ...]) -> None:
        self._run, self._rest = compiled[grid], rest
        self._raw_stream = raw_stream_function()
        ways = direct_launcher(compiled, grid, rest), by_runner(self._run, rest)
        self._ways = [] if self._raw_stream is None else [way for way in ways if way is not None]

    def __call__(self, device: torch.device, table: torch.Tensor, out: torch.Tensor, num_rows: int) -> None:
        """Enqueue it on the current stream of the device; the launch of the compilation has looked at the tensors."""
        while self._ways and self._raw_stream is not None:
            try:
                self._ways[0](address_of(table), address_of(out), num_rows, self._raw_stream(device.index))
            except TypeError:  # a Triton whose launcher does not take these
                del self._ways[0]
            else:
                return
        self._run(table, out, num_rows, *self._rest)


class _Mark:
    """Stands for an argument."""


def direct_launcher(compiled: Any, grid: tuple[int, int, int], rest: tuple[Any, ...]) -> Launcher | None:
    """Return what calls Triton's C launcher with the arguments that Triton itself would give it.

    Triton's own Python runs once, with marks for the arguments that change and without a launch, and tells where they
    belong. None where it does something else: a launch needs memory of its own, or somebody listens to launches.

    Parameters:
        compiled: Triton's compiled kernel. rest: arguments after the rows.
    """
    table, out, rows, stream = marks = tuple(_Mark() for _ in range(4))
    seen: list[tuple[Any, ...]] = []
    try:
        launcher = compiled.run
        launch = launcher.launch
        launcher.launch = lambda *args: seen.append(args)
        try:
            compiled[grid](table, out, rows, *rest, stream=stream)
        finally:
            launcher.launch = launch
    except Exception:  # another Triton
        return None
    if len(seen) != 1:
        return None
    args = tuple(None if _nobody_listens(arg) else arg for arg in seen[0])
    if any(hasattr(arg, "calls") or hasattr(arg, "data_ptr") for arg in args):
        return None
    nested = [at for at, arg in enumerate(args) if isinstance(arg, tuple) and any(arg[:1] == (mark,) for mark in marks)]
    kernel_args = args[nested[0]] if nested else args
    at_stream, first = _place(args, stream), _place(kernel_args, table)
    last = nested[0] if nested else first
    if at_stream is None or first is None or last is None or at_stream > last:
        return None
    if kernel_args[first : first + 3] != (table, out, rows):
        return None
    return _call(launch, args, at_stream, nested[0] if nested else None, first)


def _call(launch: Callable[..., Any], args: tuple[Any, ...], at_stream: int, nested: int | None, first: int) -> Launcher:
    before = args[:at_stream]
    if nested is None:
        between, after = args[at_stream + 1 : first], args[first + 3 :]

        def flat(table: int, out: int, rows: int, stream: int) -> None:
            launch(*before, stream, *between, table, out, rows, *after)

        return flat
    between, after, more = args[at_stream + 1 : nested], args[nested + 1 :], args[nested][3:]

    def in_tuple(table: int, out: int, rows: int, stream: int) -> None:
        launch(*before, stream, *between, (table, out, rows, *more), *after)

    return in_tuple


def _nobody_listens(arg: Any) -> bool:
    """Whether an argument is a chain of hooks with none in it."""
    return getattr(arg, "calls", None) == []


def _place(args: tuple[Any, ...], mark: _Mark) -> int | None:
    places = [at for at, arg in enumerate(args) if arg is mark]
    return places[0] if len(places) == 1 else None


def by_runner(run: Callable[..., Any], rest: tuple[Any, ...]) -> Launcher:
    """Return what launches through Triton's Python, with addresses and a stream as numbers.

    Of a tensor, Triton's launcher asks the driver in every launch whether the GPU can reach it.
    """

    def launch(table: int, out: int, rows: int, stream: int) -> None:
        run(table, out, rows, *rest, stream=stream)

    return launch


def address_of(tensor: Any) -> int:
    """Return the address of memory that stays where it is; PyTorch is asked once."""
    kept = vars(tensor)
    address = kept.get("nvtxmoe_address")
    if address is None:
        address = kept["nvtxmoe_address"] = int(tensor.data_ptr())
    found: int = address
    return found
