"""NVTX events of schema 1, in the binary or the word form.

The nvtx module keeps every distinct message for ever, so messages come from a fixed set; payloads vary.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import nvtx

from nvtxmoe import schema, words

#: Binary payloads came with this nvtx.
BINARY_SINCE = (0, 2, 15)

Payload = Any  # a 0-d structured numpy array, or a 1-d array


class Emitter(Protocol):
    """Emits ranges and payloads into the domain ``nvtxmoe``."""

    encoding: str

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range with an int payload."""

    def push_step(self, payload: Payload) -> None:
        """Open ``moe.step``."""

    def pop(self) -> None:
        """Close the innermost range of this thread."""

    def mark(self, event: str, payload: Payload) -> None:
        """Emit a payload; ``event`` is ``moe.counts`` and the like."""

    def depth(self) -> int:
        """Ranges open on this thread."""


class _Depth(threading.local):
    value = 0


class _Ranges:
    """How deep each thread's ranges are, to unwind after a failure."""

    def __init__(self) -> None:
        self._depth = _Depth()

    def depth(self) -> int:
        return self._depth.value

    def _pushed(self) -> None:
        self._depth.value += 1

    def _popped(self) -> None:
        self._depth.value -= 1


class BinaryEmitter(_Ranges):
    """Binary payloads, through the domain's own functions (nvtx 0.2.15 and newer)."""

    encoding = "binary"

    def __init__(self) -> None:
        super().__init__()
        self._domain = nvtx.get_domain(schema.DOMAIN)
        self._of_range = lru_cache(maxsize=None)(self._attributes)

    def _attributes(self, name: str, payload: Payload, category: str) -> Any:
        return self._domain.get_event_attributes(message=name, category=category, payload=payload)

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range with an int payload."""
        self._domain.push_range(self._of_range(name, layer, category))
        self._pushed()

    def push_step(self, payload: Payload) -> None:
        """Open ``moe.step`` with its struct."""
        self._domain.push_range(self._attributes(schema.STEP, payload, "step"))
        self._pushed()

    def pop(self) -> None:
        """Close the innermost range of this thread."""
        self._domain.pop_range()
        self._popped()

    def mark(self, event: str, payload: Payload) -> None:
        """Emit a payload as it is."""
        self._domain.mark(self._attributes(event, payload, event.removeprefix("moe.")))


class WordEmitter(_Ranges):
    """The word form, for every nvtx and nsys: payloads as int64 marks of fixed messages."""

    encoding = "words"

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range with an int payload."""
        nvtx.push_range(name, domain=schema.DOMAIN, category=category, payload=layer)
        self._pushed()

    def push_step(self, payload: Payload) -> None:
        """Open ``moe.step`` with the step's number; its struct follows as words."""
        nvtx.push_range(schema.STEP, domain=schema.DOMAIN, category="step", payload=int(payload["step"]))
        self._pushed()
        self.mark(schema.STEP, payload)

    def pop(self) -> None:
        """Close the innermost range of this thread."""
        nvtx.pop_range(domain=schema.DOMAIN)
        self._popped()

    def mark(self, event: str, payload: Payload) -> None:
        """Emit a payload as words, consecutive on this thread."""
        for message, word in words.marks(event.removeprefix("moe."), np.asarray(payload).tobytes()):
            nvtx.mark(message, domain=schema.DOMAIN, payload=word)


def nvtx_version() -> tuple[int, ...]:
    """Version of the installed nvtx as numbers."""
    from importlib.metadata import version  # noqa: PLC0415

    return tuple(int(part) for part in version("nvtx").split(".")[:3] if part.isdigit())


def make_emitter(payload: str) -> Emitter:
    """The emitter for a setting of ``payload``: auto takes binary where nvtx can carry it."""
    binary = nvtx_version() >= BINARY_SINCE if payload == "auto" else payload == "binary"
    return BinaryEmitter() if binary else WordEmitter()
