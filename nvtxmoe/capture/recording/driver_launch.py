"""Launches of a compiled Triton kernel by one call of the CUDA driver, with arguments that lie ready in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from nvtxmoe.capture.log import logger

#: Sizes in bytes of the parameters of our kernels: table, counts, rows, stride of rows; then what Triton adds, memory
#: of its own that our kernels have no use for.
PARAMETERS, ADDED = (8, 8, 4, 4), 8
MOST_ADDED = 2
#: Past it Triton launches with attributes.
MOST_SHARED_BYTES = 228 * 1024
WARP = 32


class Config(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("num_attributes", ctypes.c_uint),
    ]


class DriverKernel:
    """A kernel whose parameters the driver has confirmed.

    Parameters:
        driver: ``libcuda``.
        function: the kernel's handle.
        num_parameters: what Triton adds included.
    """

    def __init__(
        self,
        driver: Any,
        function: int,
        grid: tuple[int, int, int],
        warps: int,
        shared_bytes: int,
        row_stride: int,
        num_parameters: int,
    ) -> None:
        self._launch, self._function = driver.cuLaunchKernelEx, ctypes.c_void_p(function)
        self._grid, self._block, self._shared_bytes = grid, (WARP * warps, 1, 1), shared_bytes
        self._row_stride, self._num_parameters = row_stride, num_parameters

    def into(
        self, table: int, out: int, raw_stream: Callable[[int], int], device: int, refused: Callable[[int], None]
    ) -> Callable[[int], None]:
        """Return what launches it with these addresses, given the rows.

        Parameters:
            raw_stream: from a device's index to the handle of its current stream.
            refused: called with the rows where the driver did not launch it.
        """
        number = self._num_parameters
        values = (ctypes.c_uint64 * number)(table, out, 0, self._row_stride)
        first = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * number)(*(first + 8 * at for at in range(number)))
        config = Config(self._grid, self._block, self._shared_bytes)
        launch, function, at_config, at_pointers = (
            self._launch,
            self._function,
            ctypes.byref(config),
            ctypes.byref(pointers),
        )

        def call(rows: int) -> None:
            values[2] = rows
            config.stream = raw_stream(device)
            if launch(at_config, function, at_pointers, None):
                refused(rows)

        return call


def driver_kernel(compiled: Any, grid: tuple[int, int, int], row_stride: int) -> DriverKernel | None:
    """Return how the driver launches a compiled kernel; None where that is not known for certain.

    The driver itself is asked for the number and the sizes of the kernel's parameters, which needs CUDA 12.4.
    """
    try:
        metadata = compiled.metadata
        usual = {
            "num_ctas": 1, "launch_cooperative_grid": False, "launch_pdl": False, "global_scratch_size": 0,
            "profile_scratch_size": 0, "instrumentation_mode": "", "cluster_dims": (1, 1, 1),
        }  # fmt: skip
        shared_bytes, function = int(metadata.shared), int(compiled.function)
        if (
            any(_plain(getattr(metadata, name, value)) != value for name, value in usual.items())
            or metadata.target.backend != "cuda"
            or metadata.target.warp_size != WARP
            or shared_bytes > MOST_SHARED_BYTES
        ):
            return None
        driver = _driver()
        sizes = parameter_sizes(driver, function)
        added = sizes[len(PARAMETERS) :]
        if sizes[: len(PARAMETERS)] != PARAMETERS or added != (ADDED,) * len(added) or len(added) > MOST_ADDED:
            return None
        return DriverKernel(driver, function, grid, int(metadata.num_warps), shared_bytes, row_stride, len(sizes))
    except Exception:  # another Triton, or another driver
        logger().info("kernels are launched by Triton", exc_info=True)
        return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@lru_cache(maxsize=1)
def _driver() -> Any:
    driver = ctypes.CDLL("libcuda.so.1")  # PyTorch has loaded it
    driver.cuLaunchKernelEx.restype = driver.cuFuncGetParamInfo.restype = ctypes.c_int
    return driver


def parameter_sizes(driver: Any, function: int) -> tuple[int, ...]:
    """Sizes in bytes of a kernel's parameters."""
    sizes: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    most = len(PARAMETERS) + MOST_ADDED + 1
    while len(sizes) < most and not driver.cuFuncGetParamInfo(
        ctypes.c_void_p(function), ctypes.c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)
    ):
        sizes.append(size.value)
    return tuple(sizes)
