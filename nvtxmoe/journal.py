"""The journal of direct mode: schema-1 payloads in a file, so that a run needs no nsys.

One append-only file a process. After ``MAGIC`` come blocks, each written by one system call and closed by a checksum: a
killed process loses what was not yet written, and half a block at the end is seen as such.

    block:  "BLK1", u32 compressed bytes, u32 raw bytes, u32 crc32 of the compressed bytes, then zlib data
    raw:    records: u32 event (index into ``EVENTS``), u32 payload bytes, i64 unix time in ns, then the payload

Payloads are those of ``docs/schema.md``; all numbers are little-endian. The time of a ``step`` is its start.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.schema import WORD_EVENTS

MAGIC = b"NVTXMOE1"
SUFFIX = ".journal"
#: Folder of the journals inside a session's folder.
RANKS = "ranks"
#: ``end`` closes a journal whose process ended in an orderly way; its payload is a JSON object.
EVENTS = (*WORD_EVENTS, "end")

_BLOCK = struct.Struct("<4sIII")
_BLOCK_MARK = b"BLK1"
_RECORD = struct.Struct("<IIq")
_CODES = {name: code for code, name in enumerate(EVENTS)}
#: Raw bytes of one block at most; a reader refuses more as damage.
MOST_RAW_BYTES = 1 << 28


def record(event: str, time_ns: int, payload: bytes) -> bytes:
    """One record as bytes."""
    return _RECORD.pack(_CODES[event], len(payload), time_ns) + payload


def block(records: bytes) -> bytes:
    """One block as bytes, from whole records."""
    packed = zlib.compress(records, 1)
    return _BLOCK.pack(_BLOCK_MARK, len(packed), len(records), zlib.crc32(packed)) + packed


class JournalWriter:
    """Appends blocks to a journal. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.bytes_written = 0
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._write(MAGIC)

    def append(self, records: bytes) -> None:
        """Write whole records as one block."""
        self._write(block(records))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _write(self, data: bytes) -> None:
        if self._fd is None:
            raise ValueError("the journal is closed")
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            self.bytes_written += done
            view = view[done:]


@dataclass
class Journal:
    """A journal being read.

    Attributes:
        truncated: whether the file ends inside a block, known after reading.
        ended: the payload of the ``end`` record, known after reading; None when the process was killed.
    """

    path: Path
    truncated: bool = False
    ended: bytes | None = field(default=None, repr=False)

    def records(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (event, unix time in ns, payload) in file order; the ``end`` record is kept in ``ended``.

        Raises:
            NvtxmoeError: no journal, or one that is damaged before its end.
        """
        with self.path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise NvtxmoeError("not a journal of nvtxmoe", where=self.path, remedy="Give a session's folder")
            at = len(MAGIC)
            while head := file.read(_BLOCK.size):
                raw = self._block(head, file.read(_BLOCK.unpack(head)[1]) if len(head) == _BLOCK.size else b"", at)
                if raw is None:
                    if file.read(1):
                        raise self._damaged(at)
                    self.truncated = True
                    return
                yield from self._records(raw, at)
                at = file.tell()

    def _block(self, head: bytes, packed: bytes, at: int) -> bytes | None:
        if len(head) < _BLOCK.size:
            return None
        mark, packed_bytes, raw_bytes, checksum = _BLOCK.unpack(head)
        if mark != _BLOCK_MARK or raw_bytes > MOST_RAW_BYTES:
            raise self._damaged(at)
        if len(packed) < packed_bytes or zlib.crc32(packed) != checksum:
            return None
        raw = zlib.decompressobj().decompress(packed, raw_bytes + 1)
        if len(raw) != raw_bytes:
            raise self._damaged(at)
        return raw

    def _records(self, raw: bytes, at: int) -> Iterator[tuple[str, int, bytes]]:
        place = 0
        while place < len(raw):
            if place + _RECORD.size > len(raw):
                raise self._damaged(at)
            code, size_bytes, time_ns = _RECORD.unpack_from(raw, place)
            place += _RECORD.size
            if code >= len(EVENTS) or place + size_bytes > len(raw):
                raise self._damaged(at)
            payload = raw[place : place + size_bytes]
            place += size_bytes
            if EVENTS[code] == "end":
                self.ended = payload
            else:
                yield EVENTS[code], time_ns, payload

    def _damaged(self, at: int) -> NvtxmoeError:
        return NvtxmoeError(f"damaged journal at byte {at:,}", where=self.path, remedy="Capture again")
