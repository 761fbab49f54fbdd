"""The current stream of a GPU, without new objects of PyTorch in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def raw_stream(device: torch.device) -> int | None:
    """Return the handle of the device's current stream; None where PyTorch does not tell it.

    Triton asks PyTorch by the same function, but for the current device first, which takes several calls.
    """
    import torch  # noqa: PLC0415  only where there are tensors of a GPU

    ask = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return None if ask is None or device.type != "cuda" else int(ask(device.index))


class CurrentStreams:
    """Keeps the stream objects of PyTorch by their handle: PyTorch makes a new object whenever it is asked."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int | None, int], Any] = {}

    def record(self, event: Any, device: torch.device) -> None:
        """Record an event on the current stream of the current device, which is ``device``."""
        raw = raw_stream(device)
        if raw is None:
            event.record()
            return
        key = device.index, raw
        stream = self._streams.get(key)
        if stream is None:
            import torch  # noqa: PLC0415

            stream = self._streams[key] = torch.cuda.current_stream(device)
        event.record(stream)
