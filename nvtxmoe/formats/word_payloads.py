"""The word form of schema 1: payload bytes as int64 marks.

Older pairs of nvtx and nsys carry only int and float payloads, and every distinct message string is kept for
ever by the nvtx module, so text that changes leaks. A payload therefore becomes marks of one fixed message
``moe.w.<event>``: first the number of words, then the payload's bytes eight at a time, little-endian, the last
word padded with zero bytes. The marks of one payload stand consecutively on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nvtxmoe.formats.schema import WORD_EVENTS, WORD_PREFIX

WORD_BYTES = 8


def message(event: str) -> str:
    """The mark's message for an event's short name (``counts`` gives ``moe.w.counts``)."""
    if event not in WORD_EVENTS:
        raise ValueError(f"no word form for {event!r}; one of {', '.join(WORD_EVENTS)}")
    return WORD_PREFIX + event


def encode(payload: bytes) -> list[int]:
    """Encode one payload as signed 64-bit words, the first their number (itself not counted)."""
    words = -(-len(payload) // WORD_BYTES)
    padded = payload.ljust(words * WORD_BYTES, b"\0")
    return [words, *np.frombuffer(padded, "<i8").tolist()]


def marks(event: str, payload: bytes) -> Iterator[tuple[str, int]]:
    """Yield (message, int64 payload) of each mark that carries ``payload``, in order."""
    name = message(event)
    for word in encode(payload):
        yield name, word
