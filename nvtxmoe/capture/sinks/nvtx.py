"""The sink that emits NVTX."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks.nvtx_emitter import Emitter
from nvtxmoe.formats import schema


class NvtxSink:
    """Events of schema 1 through an emitter."""

    steps_a_send = 1

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.encoding = emitter.encoding
        self._step_bytes = bytearray(schema.STEP_DTYPE.itemsize)
        self._step = np.frombuffer(self._step_bytes, schema.STEP_DTYPE).reshape(())
        self._number = memoryview(self._step_bytes)[:8].cast("q")  # GPUs are on little-endian machines only
        self._other_fields: tuple[int, ...] = ()

    def meta(self, text: bytes) -> None:
        """A mark."""
        self.emitter.mark(schema.META, np.frombuffer(text, np.uint8))

    def step_begins(self, step: Step) -> None:
        """A range opens."""
        other_fields = step[1:]
        if other_fields == self._other_fields:  # as in most steps; to pack them takes longer than all else in here
            self._number[0] = step[0]
        else:
            step.pack_into(self._step_bytes)
            self._other_fields = other_fields
        self.emitter.push_step(self._step)

    def step_ends(self) -> None:
        """It closes."""
        self.emitter.pop()

    def payload(self, event: str, payload: Any) -> None:
        """A mark."""
        self.emitter.mark(event, payload)

    def payloads(self, event: str, rows: Any) -> None:
        """One mark, or in the word form the marks of each row."""
        self.emitter.mark_rows(event, rows)

    def pause(self) -> None:
        """Nothing: nsys has what was emitted."""

    def conclude(self, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  nsys has what was emitted
        """Have nsys write its CUDA events now: a process that is killed soon after takes them with it."""
        flush_cuda_events()

    def close(self, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  nsys has what was emitted
        """As ``conclude``."""
        flush_cuda_events()


def flush_cuda_events() -> None:
    """Wait for the device and end nsys's CUDA buffers (``--flush-on-cudaprofilerstop``, on by default)."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()
