"""NVTX events of schema 1, in the binary or the word form.

The nvtx module keeps every distinct message for ever, so messages come from a fixed set; payloads vary.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import nvtx

from nvtxmoe.formats import schema, word_payloads
from nvtxmoe.formats.checksum import seal, without_checksum

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
        """Emit a payload; ``event`` is ``moe.topk`` and the like."""

    def mark_rows(self, event: str, rows: Payload) -> None:
        """Emit the rows of a structured array; ``event`` is ``moe.counts`` and the like. The array may change later."""

    def depth(self) -> int:
        """Ranges open on this thread."""


class _Thread(threading.local):
    """What a thread uses again, and how deep its ranges are, to unwind after a failure.

    Attributes:
        attributes: attributes objects by message.
        in_place: the attributes object that holds the address of ``moe.step``'s payload, and that payload.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.attributes: dict[str, Any] = {}
        self.in_place: tuple[Any, Payload] = None, None


class _Ranges:
    """An emitter's state in each thread."""

    def __init__(self) -> None:
        self._local = _Thread()

    def depth(self) -> int:
        return self._local.depth


class BinaryEmitter(_Ranges):
    """Binary payloads, through the domain's own functions (nvtx 0.2.15 and newer).

    Each message has one attributes object per thread, whose payload is set anew for every event: a new object takes
    several times as long.
    """

    encoding = "binary"

    def __init__(self) -> None:
        super().__init__()
        self._domain = nvtx.get_domain(schema.DOMAIN)
        self._of_range = lru_cache(maxsize=None)(self._attributes)

    def _attributes(self, name: str, payload: Payload, category: str) -> Any:
        return self._domain.get_event_attributes(message=name, category=category, payload=payload)

    def _reused(self, name: str, payload: Payload, category: str) -> Any:
        attributes = self._local.attributes.get(name)
        if attributes is None:
            attributes = self._local.attributes[name] = self._attributes(name, payload, category)
        else:
            attributes.payload = payload
        return attributes

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range with an int payload."""
        self._domain.push_range(self._of_range(name, layer, category))
        self._local.depth += 1

    def push_step(self, payload: Payload) -> None:
        """Open ``moe.step`` with its struct. Where nvtx holds the struct's address, setting it again is spared."""
        local = self._local
        attributes, held = local.in_place
        if held is not payload:
            attributes = self._reused(schema.STEP, payload, "step")
            local.in_place = (attributes, payload) if _reads_in_place(attributes, payload) else (None, None)
        self._domain.push_range(attributes)
        local.depth += 1

    def pop(self) -> None:
        """Close the innermost range of this thread."""
        self._domain.pop_range()
        self._local.depth -= 1

    def mark(self, event: str, payload: Payload) -> None:
        """Emit a payload as it is."""
        self._domain.mark(self._reused(event, payload, event.removeprefix("moe.")))

    def mark_rows(self, event: str, rows: Payload) -> None:
        """Emit all rows in one mark, or in as few as ``schema.MOST_PAYLOAD_BYTES`` allows."""
        rows_per_mark = max(1, schema.MOST_PAYLOAD_BYTES // rows.dtype.itemsize)
        if len(rows) <= rows_per_mark:
            if len(rows):
                seal(rows)
                self.mark(event, rows)
            return
        for first in range(0, len(rows), rows_per_mark):
            part = rows[first : first + rows_per_mark]
            seal(part)
            self.mark(event, part)


class WordEmitter(_Ranges):
    """The word form, for every nvtx and nsys: payloads as int64 marks of fixed messages.

    nvtx 0.2.11 keeps the attributes of every distinct payload for ever (an unbounded cache). So each message has one
    attributes object a thread here, whose payload is set anew for every event.
    """

    encoding = "words"

    def __init__(self) -> None:
        super().__init__()
        self._domain = nvtx.get_domain(schema.DOMAIN)
        self._push, self._pop, self._mark = _calls(self._domain)
        self._of_range = lru_cache(maxsize=None)(self._attributes)

    def _attributes(self, name: str, payload: int, category: str | None) -> Any:
        return self._domain.get_event_attributes(message=name, category=category, payload=payload)

    def _reused(self, name: str, payload: int, category: str | None = None) -> Any:
        attributes_by_name = self._local.attributes
        attributes = attributes_by_name.get(name)
        if attributes is None:
            # A payload of its own for each thread, so that nvtx's cache gives each a different object.
            first = -1 - threading.get_ident()
            attributes = attributes_by_name[name] = self._attributes(name, first, category)
        if attributes is not None:  # newer nvtx gives None where no tool listens
            attributes.payload = payload
        return attributes

    def push(self, name: str, layer: int, category: str) -> None:
        """Open a range with an int payload."""
        self._push(self._of_range(name, layer, category))
        self._local.depth += 1

    def push_step(self, payload: Payload) -> None:
        """Open ``moe.step`` with the step's number; its struct follows as words."""
        self._push(self._reused(schema.STEP, int(payload["step"]), "step"))
        self._local.depth += 1
        self.mark(schema.STEP, payload)

    def pop(self) -> None:
        """Close the innermost range of this thread."""
        self._pop()
        self._local.depth -= 1

    def mark(self, event: str, payload: Payload) -> None:
        """Emit a payload as words, consecutive on this thread."""
        data = np.asarray(payload).tobytes()
        attributes = self._reused(word_payloads.message(event.removeprefix("moe.")), 0)
        if attributes is None:
            return
        for word in word_payloads.encode(data):
            attributes.payload = word
            self._mark(attributes)

    def mark_rows(self, event: str, rows: Payload) -> None:
        """Emit each row as words of its own: a row's length follows from its layer, that of several rows does not."""
        for row in without_checksum(rows):
            self.mark(event, row)


def _reads_in_place(attributes: Any, payload: Payload) -> bool:
    """Whether an attributes object holds the address of a payload's memory, so that changes of it are seen.

    nvtx copies arrays of one dimension, and says of neither kind what it does: so its object is looked at.
    """
    if attributes is None or sys.implementation.name != "cpython":
        return False
    address = int(payload.ctypes.data).to_bytes(ctypes.sizeof(ctypes.c_void_p), sys.byteorder)
    return address in ctypes.string_at(id(attributes), type(attributes).__basicsize__)


def _calls(domain: Any) -> tuple[Callable[[Any], None], Callable[[], None], Callable[[Any], None]]:
    """Push, pop and mark of a domain with attributes: the domain's own, or what nvtx 0.2.11 has beneath."""
    if hasattr(domain, "push_range"):
        return domain.push_range, domain.pop_range, domain.mark
    from nvtx import _lib  # noqa: PLC0415  not there in newer ones

    handle = domain.handle
    return lambda a: _lib.push_range(a, handle), lambda: _lib.pop_range(handle), lambda a: _lib.mark(a, handle)


def nvtx_version() -> tuple[int, ...]:
    """Version of the installed nvtx as numbers."""
    from importlib.metadata import version  # noqa: PLC0415

    return tuple(int(part) for part in version("nvtx").split(".")[:3] if part.isdigit())


def make_emitter(payload: str) -> Emitter:
    """The emitter for a setting of ``payload``: auto takes binary where nvtx can carry it."""
    binary = nvtx_version() >= BINARY_SINCE if payload == "auto" else payload == "binary"
    return BinaryEmitter() if binary else WordEmitter()
