"""Launches of a compiled Triton kernel without Triton's own Python around them, which takes longer than the launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.current_stream import raw_stream_function
from nvtxmoe.capture.recording.driver_launch import DriverKernel, driver_kernel

if TYPE_CHECKING:
    import torch

#: Launches a kernel: (address of the table, address of what comes out, rows, handle of the stream).
Launcher = Callable[[int, int, int, int], None]


class Prepared:
    """Launches of a compiled kernel, in the quickest of three ways that this Triton has; ``into`` is quicker still.

    Parameters:
        trailing_arguments: arguments after the rows, the first of them the stride of rows.
    """

    def __init__(self, compiled: Any, grid: tuple[int, int, int], trailing_arguments: tuple[Any, ...]) -> None:
        self._compiled, self._grid, self._trailing_arguments = compiled, grid, trailing_arguments
        self._run = compiled[grid]
        self._raw_stream = raw_stream_function()
        self._refused = False

    @cached_property
    def _direct(self) -> Launcher | None:
        return direct_launcher(self._compiled, self._grid, self._trailing_arguments)

    @cached_property
    def _ways(self) -> list[Launcher]:
        ways = self._direct, by_runner(self._run, self._trailing_arguments)
        return [] if self._raw_stream is None else [way for way in ways if way is not None]

    @cached_property
    def _kernel(self) -> DriverKernel | None:
        if self._direct is None:  # somebody listens to launches, or they need memory: Triton knows how
            return None
        return driver_kernel(self._compiled, self._grid, self._trailing_arguments[0])

    def __call__(self, device: torch.device, table: torch.Tensor, out: torch.Tensor, num_rows: int) -> None:
        """Enqueue it on the current stream of the device; the launch of the compilation has looked at the tensors."""
        while self._ways and self._raw_stream is not None:
            try:
                self._ways[0](address_of(table), address_of(out), num_rows, self._raw_stream(device.index))
            except TypeError:  # a Triton whose launcher does not take these
                del self._ways[0]
            else:
                return
        self._run(table, out, num_rows, *self._trailing_arguments)

    def into(self, device: torch.device, table: torch.Tensor, out: torch.Tensor) -> Callable[[int], None] | None:
        """Return what has the driver launch it with these tensors, given the rows; None where that is not known."""
        raw_stream, index = self._raw_stream, device.index
        if raw_stream is None or index is None or self._refused or self._kernel is None:
            return None
        refused = partial(self._launch_refused, device, table, out)
        return self._kernel.into(address_of(table), address_of(out), raw_stream, index, refused)

    def _launch_refused(self, device: torch.device, table: torch.Tensor, out: torch.Tensor, num_rows: int) -> None:
        if not self._refused:
            self._refused = True
            logger().warning("the CUDA driver refused a launch of the counting kernel: Triton launches it instead")
        self(device, table, out, num_rows)


class _Mark:
    """Stands for an argument."""


def direct_launcher(compiled: Any, grid: tuple[int, int, int], trailing_arguments: tuple[Any, ...]) -> Launcher | None:
    """Return what calls Triton's C launcher with the arguments that Triton itself would give it.

    Triton's own Python runs once, with marks for the arguments that change and without a launch, and tells where they
    belong. None where it does something else: a launch needs memory of its own, or somebody listens to launches.

    Parameters:
        compiled: Triton's compiled kernel. rest: arguments after the rows.
    """
    table, out, rows, stream = (_Mark() for _ in range(4))
    seen: list[tuple[Any, ...]] = []
    try:
        launcher = compiled.run
        launch = launcher.launch
        launcher.launch = lambda *args: seen.append(args)
        try:
            compiled[grid](table, out, rows, *trailing_arguments, stream=stream)
        finally:
            launcher.launch = launch
    except Exception:  # another Triton
        return None
    if len(seen) != 1:
        return None
    args = tuple(None if _nobody_listens(arg) else arg for arg in seen[0])
    if any(hasattr(arg, "calls") or hasattr(arg, "data_ptr") for arg in args):
        return None
    at = [place for place, arg in enumerate(args) if arg is stream]
    argument_triple = table, out, rows
    nested = [place for place, arg in enumerate(args) if isinstance(arg, tuple) and arg[:3] == argument_triple]
    flat = [place for place in range(len(args)) if args[place : place + 3] == argument_triple]
    if len(at) != 1 or len(nested) + len(flat) != 1 or at[0] > (nested + flat)[0]:
        return None
    return _in_tuple(launch, args, at[0], nested[0]) if nested else _flat(launch, args, at[0], flat[0])


def _in_tuple(launch: Callable[..., Any], args: tuple[Any, ...], at_stream: int, first: int) -> Launcher:
    """The form of Triton 3.8: arguments of the kernel are a tuple."""
    kernel_args: tuple[Any, ...] = args[first]
    before, between, more, after = args[:at_stream], args[at_stream + 1 : first], kernel_args[3:], args[first + 1 :]

    def call(table: int, out: int, rows: int, stream: int) -> None:
        launch(*before, stream, *between, (table, out, rows, *more), *after)

    return call


def _flat(launch: Callable[..., Any], args: tuple[Any, ...], at_stream: int, first: int) -> Launcher:
    """The form of earlier ones: arguments of the kernel follow the others."""
    before, between, after = args[:at_stream], args[at_stream + 1 : first], args[first + 3 :]

    def call(table: int, out: int, rows: int, stream: int) -> None:
        launch(*before, stream, *between, table, out, rows, *after)

    return call


def _nobody_listens(arg: Any) -> bool:
    """Whether an argument is a chain of hooks with none in it."""
    return getattr(arg, "calls", None) == []


def by_runner(run: Callable[..., Any], trailing_arguments: tuple[Any, ...]) -> Launcher:
    """Return what launches through Triton's Python, with addresses and a stream as numbers.

    Of a tensor, Triton's launcher asks the driver in every launch whether the GPU can reach it.
    """

    def launch(table: int, out: int, rows: int, stream: int) -> None:
        run(table, out, rows, *trailing_arguments, stream=stream)

    return launch


def address_of(tensor: Any) -> int:
    """Return the address of memory that stays where it is; PyTorch is asked once."""
    attributes = vars(tensor)
    address = attributes.get("nvtxmoe_address")
    if address is None:
        address = attributes["nvtxmoe_address"] = int(tensor.data_ptr())
    typed_address: int = address
    return typed_address
