"""Launches by the CUDA driver, with a stand-in for the driver that reads its arguments from memory as C does."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from nvtxmoe.capture.recording import driver_launch
from nvtxmoe.capture.recording.driver_launch import driver_kernel, parameter_sizes

FUNCTION, GRID, STRIDE = 0x7F00_1234_5678, (48, 2, 1), 1 << 30
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
PARAMETER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_size_t),
)
INVALID_VALUE = 1


class Driver:
    """``libcuda`` with one kernel; it notes what it is given."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes, self.status = sizes, 0
        self.launched: list[tuple[Any, ...]] = []
        self.cuLaunchKernelEx, self.cuFuncGetParamInfo = LAUNCH(self._launch), PARAMETER(self._parameter)

    def _parameter(self, function: int, at: int, offset: Any, size: Any) -> int:
        assert function == FUNCTION
        if at >= len(self.sizes):
            return INVALID_VALUE
        offset[0], size[0] = sum(self.sizes[:at]), self.sizes[at]
        return 0

    def _launch(self, config: int, function: int, parameters: int, extra: int | None) -> int:
        assert (function, extra) == (FUNCTION, None)
        # CUlaunchConfig: seven unsigned ints, a stream, a pointer to attributes, and their number.
        numbers = (ctypes.c_uint32 * 7).from_address(config)
        stream, attributes = (ctypes.c_uint64 * 2).from_address(config + 32)
        assert (attributes, ctypes.c_uint32.from_address(config + 48).value) == (0, 0)
        pointers = (ctypes.c_uint64 * len(self.sizes)).from_address(parameters)
        kinds = {4: ctypes.c_uint32, 8: ctypes.c_uint64}
        values = [kinds[size].from_address(at).value for size, at in zip(self.sizes, pointers, strict=True)]
        self.launched.append((tuple(numbers), stream, values))
        return self.status


def compiled(**other: Any) -> Any:
    """A CompiledKernel of Triton."""
    known = {
        "num_warps": 4, "num_ctas": 1, "shared": 1024, "launch_cooperative_grid": False, "launch_pdl": False,
        "global_scratch_size": 0, "profile_scratch_size": 0, "target": SimpleNamespace(backend="cuda", warp_size=32),
    }  # fmt: skip
    return SimpleNamespace(function=FUNCTION, metadata=SimpleNamespace(**known | other))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver((8, 8, 4, 4, 8, 8))
    monkeypatch.setattr(driver_launch, "_driver", lambda: made)
    return made


@pytest.mark.parametrize("added", [(), (8,), (8, 8)])  # Triton adds memory of its own, two since 3.4
def test_the_driver_gets_grid_block_stream_and_arguments(driver: Driver, added: tuple[int, ...]) -> None:
    driver.sizes = (8, 8, 4, 4, *added)
    kernel = driver_kernel(compiled(), GRID, STRIDE)
    assert kernel is not None
    streams, refused = {3: 0x5555_0000_0001}, list[int]()
    first = kernel.into(0x7FFF_0000_1000, 0x7FFF_0000_2000, streams.__getitem__, 3, refused.append)
    second = kernel.into(0x7FFF_0000_1000, 0x7FFF_0000_3000, streams.__getitem__, 3, refused.append)
    for call, rows, streams[3] in ((first, 5, 0x5555_0000_0001), (second, 7, 0), (first, 6, 0x5555_0000_0002)):
        call(rows)
    assert refused == []
    shape = (48, 2, 1, 128, 1, 1, 1024)
    none = [0] * len(added)
    assert driver.launched == [
        (shape, 0x5555_0000_0001, [0x7FFF_0000_1000, 0x7FFF_0000_2000, 5, STRIDE, *none]),
        (shape, 0, [0x7FFF_0000_1000, 0x7FFF_0000_3000, 7, STRIDE, *none]),
        (shape, 0x5555_0000_0002, [0x7FFF_0000_1000, 0x7FFF_0000_2000, 6, STRIDE, *none]),
    ]


def test_a_refusal_is_told(driver: Driver) -> None:
    kernel, refused = driver_kernel(compiled(), GRID, STRIDE), list[int]()
    assert kernel is not None
    driver.status = INVALID_VALUE
    kernel.into(1, 2, lambda _: 0, 0, refused.append)(5)
    assert refused == [5]


@pytest.mark.parametrize("sizes", [(8, 8, 4), (8, 8, 8, 4), (8, 8, 4, 4, 4), (8, 8, 4, 4, 8, 8, 8)])
def test_a_kernel_with_other_parameters_is_left_to_triton(driver: Driver, sizes: tuple[int, ...]) -> None:
    driver.sizes = sizes
    assert driver_kernel(compiled(), GRID, STRIDE) is None


@pytest.mark.parametrize(
    "other",
    [
        {"num_ctas": 2}, {"launch_cooperative_grid": True}, {"launch_pdl": True}, {"global_scratch_size": 128},
        {"profile_scratch_size": 128}, {"instrumentation_mode": "gsan"}, {"cluster_dims": [2, 1, 1]},
        {"shared": 229 * 1024}, {"target": SimpleNamespace(backend="hip", warp_size=64)},
    ],
)  # fmt: skip
def test_a_launch_that_needs_more_is_left_to_triton(driver: Driver, other: dict[str, Any]) -> None:
    assert driver_kernel(compiled(**other), GRID, STRIDE) is None
    assert driver_kernel(compiled(cluster_dims=[1, 1, 1]), GRID, STRIDE) is not None  # what earlier ones write


def test_another_triton_or_driver_is_left_alone(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver_kernel(SimpleNamespace(), GRID, STRIDE) is None
    assert driver_kernel(object(), GRID, STRIDE) is None

    def without(*_: Any) -> Any:
        raise AttributeError("undefined symbol: cuFuncGetParamInfo")

    monkeypatch.setattr(driver_launch, "_driver", without)
    assert driver_kernel(compiled(), GRID, STRIDE) is None


def test_sizes_of_parameters_end_where_the_driver_says(driver: Driver) -> None:
    assert parameter_sizes(driver, FUNCTION) == (8, 8, 4, 4, 8, 8)
