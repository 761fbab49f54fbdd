"""The current stream of a GPU, without imports and new objects of PyTorch in every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def raw_stream_function() -> Callable[[int], int] | None:
    """Return PyTorch's function from a device's index to the handle of its current stream; None where it has none.

    Triton asks the same function, but for the current device first, which takes several calls.
    """
    import torch  # noqa: PLC0415  only where there are tensors of a GPU

    stream_function: Callable[[int], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return stream_function


class CurrentStreams:
    """Keeps the stream objects of PyTorch by their handle: PyTorch makes a new object whenever it is asked."""

    def __init__(self) -> None:
        self._raw_stream = raw_stream_function()
        self._streams: dict[tuple[int, int], Any] = {}

    def record(self, event: Any, device: torch.device) -> None:
        """Record an event on the current stream of the current device, which is ``device``."""
        index = device.index
        if index is None or self._raw_stream is None:
            event.record()
            return
        key = index, self._raw_stream(index)
        stream = self._streams.get(key)
        if stream is None:
            import torch  # noqa: PLC0415

            stream = self._streams[key] = torch.cuda.current_stream(device)
        event.record(stream)
