"""The journal of direct mode: schema-1 payloads in a file, so that a run needs no nsys.

One append-only file a process. After ``MAGIC`` come blocks, each written by one system call and closed by a checksum: a
killed process loses what was not yet written, and half a block at the end is seen as such.

    block:  "BLK1", u32 compressed bytes, u32 raw bytes, u32 crc32 of the compressed bytes, then zlib data
    raw:    records: u32 event (index into ``EVENTS``), u32 payload bytes, i64 unix time in ns, then the payload

Payloads are those of ``docs/reference/payload-schema.md``; all numbers are little-endian. The time
of a ``step`` is its start.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.checksum import payload_dtype, without_checksum
from nvtxmoe.formats.schema import WORD_EVENTS
from nvtxmoe.private_files import make_folder, open_new

MAGIC = b"NVTXMOE1"
SUFFIX = ".journal"
#: Folder of the journals inside a session's folder.
RANKS = "ranks"
#: ``end`` stands where everything recorded so far is written, last of all when the process ends in an orderly way; its
#: payload is a JSON object.
EVENTS = (*WORD_EVENTS, "end")

_BLOCK = struct.Struct("<4sIII")
_BLOCK_MARK = b"BLK1"
_RECORD = struct.Struct("<IIq")
_RECORD_DTYPE = np.dtype([("event", "<u4"), ("size_bytes", "<u4"), ("time_ns", "<i8")])
#: Bytes of a record's event and size: what records that are alike share.
_ALIKE_BYTES = 8
_CODES = {name: code for code, name in enumerate(EVENTS)}
#: Raw bytes of one block at most; a reader refuses more as damage. Capture keeps 64 MiB until it writes them.
MOST_RAW_BYTES = 80 << 20


def record(event: str, time_ns: int, payload: bytes) -> bytes:
    """One record as bytes."""
    return _RECORD.pack(_CODES[event], len(payload), time_ns) + payload


def records_of(event: str, time_ns: int, rows: npt.NDArray[np.void]) -> memoryview:
    """One record per row of a structured array, as bytes of its own, without checksums; all of the same time."""
    out = memoryview(bytearray(records_bytes(rows)))
    fill_records(out, event, time_ns, rows)
    return out


def records_bytes(rows: npt.NDArray[np.void]) -> int:
    """Bytes of the records of these rows."""
    return len(rows) * (_RECORD.size + payload_dtype(rows.dtype).itemsize)


def fill_records(out: memoryview, event: str, time_ns: int, rows: npt.NDArray[np.void]) -> None:
    """Write the records of ``records_of`` into memory of ``records_bytes``."""
    # As plain bytes: numpy copies structs field by field, which takes twenty times as long.
    payloads = without_checksum(rows)
    size_bytes = payloads.dtype.itemsize
    records: npt.NDArray[np.void] = np.ndarray(rows.shape, _with_head(size_bytes), out)
    records["head"] = np.frombuffer(_RECORD.pack(_CODES[event], size_bytes, time_ns), _HEAD)
    records["payload"] = payloads


_HEAD = np.dtype(f"V{_RECORD.size}")


@lru_cache(maxsize=64)
def _with_head(payload_bytes: int) -> np.dtype[np.void]:
    return np.dtype([("head", _HEAD), ("payload", f"V{payload_bytes}")])


def block(records: bytes | memoryview) -> bytes:
    """One block as bytes, from whole records."""
    packed = zlib.compress(records, 1)
    return _BLOCK.pack(_BLOCK_MARK, len(packed), len(records), zlib.crc32(packed)) + packed


class JournalWriter:
    """Appends blocks to a journal. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)  # nsys starts programs with a mask of 0
        try:
            self._fd: int | None = open_new(path, os.O_WRONLY | os.O_APPEND)
        except FileExistsError:
            raise NvtxmoeError(
                "this process has a journal there already", where=path, remedy="Give each recorder a folder of its own"
            ) from None
        self.path = path
        self._write(MAGIC)

    def append(self, records: bytes | memoryview) -> None:
        """Write whole records as one block."""
        self._write(block(records))

    def removed(self) -> bool:
        """Whether the file has no name any more: nobody will find what is written to it."""
        return self._fd is not None and os.fstat(self._fd).st_nlink == 0

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
            view = view[done:]


@dataclass(frozen=True)
class Records:
    """The records of one block as columns.

    Attributes:
        raw: the block's bytes.
        event: uint32 [records], index into ``EVENTS``.
        place: int64 [records], where each payload begins in ``raw``.
        size_bytes: int64 [records], of each payload.
        time_ns: int64 [records], unix time.
    """

    raw: bytes = field(repr=False)
    event: npt.NDArray[np.uint32]
    place: npt.NDArray[np.int64]
    size_bytes: npt.NDArray[np.int64]
    time_ns: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.event)

    def payloads(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Payloads of the records at these positions, which are of one size: uint8 [chosen, bytes]."""
        size_bytes = int(self.size_bytes[chosen[0]]) if len(chosen) else 0
        if not size_bytes:
            return np.zeros((len(chosen), 0), np.uint8)
        anywhere: npt.NDArray[np.void] = np.ndarray(
            (len(self.raw) - size_bytes + 1,), f"V{size_bytes}", self.raw, strides=(1,)
        )
        payloads: npt.NDArray[np.uint8] = anywhere[self.place[chosen]].view(np.uint8)
        return payloads.reshape(len(chosen), size_bytes)


@dataclass
class Journal:
    """A journal being read, as far as it had been written when that began.

    Attributes:
        size_bytes: of the file, known after reading.
        truncated: whether the file ends inside a block, known after reading.
        ended: the payload of the ``end`` record, known after reading; None when the process was killed or still runs.
    """

    path: Path
    size_bytes: int = 0
    truncated: bool = False
    ended: bytes | None = field(default=None, repr=False)

    def bulk(self) -> Iterator[Records]:
        """Yield the records of each block in file order, except ``end``, whose payload is kept in ``ended``.

        Raises:
            NvtxmoeError: no journal, or one that is damaged before its end.
        """
        end = EVENTS.index("end")
        for at, raw in self._blocks():
            records = _columns(raw)
            if records is None:
                raise self._damaged(at)
            closing = np.flatnonzero(records.event == end)
            if len(records) and records.event[-1] != end:
                self.ended = None  # it went on
            elif len(closing):
                self.ended = records.payloads(closing[-1:]).tobytes()
            if len(closing):
                keep = np.flatnonzero(records.event != end)
                records = Records(
                    raw, records.event[keep], records.place[keep], records.size_bytes[keep], records.time_ns[keep]
                )
            yield records

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield where each whole block begins in the file, and its raw bytes."""
        with self.path.open("rb") as file:
            # A running process goes on writing: what comes after this is another reading's.
            end = self.size_bytes = os.fstat(file.fileno()).st_size
            self._check_magic(file.read(len(MAGIC)))
            at = len(MAGIC)
            while at < end:
                head = file.read(min(_BLOCK.size, end - at))
                room = end - at - len(head)
                packed = file.read(min(_BLOCK.unpack(head)[1], room)) if len(head) == _BLOCK.size else b""
                raw = self._block(head, packed, at)
                if raw is None:
                    if len(packed) < room:
                        raise self._damaged(at)
                    self.truncated = True
                    return
                yield at, raw
                at += len(head) + len(packed)

    def _check_magic(self, magic: bytes) -> None:
        if magic == MAGIC:
            return
        if MAGIC.startswith(magic):  # the process has just begun, or was killed as it began
            self.truncated = True
            return
        if magic[:-1] == MAGIC[:-1]:
            raise NvtxmoeError(
                f"a journal of another format, {magic[-1:]!r}, and this nvtxmoe reads {MAGIC[-1:]!r}",
                where=self.path,
                remedy="Read it with the version of nvtxmoe that captured it, or a newer one",
            )
        raise NvtxmoeError("not a journal of nvtxmoe", where=self.path, remedy="Give a session's folder")

    def _block(self, head: bytes, packed: bytes, at: int) -> bytes | None:
        if len(head) < _BLOCK.size:
            return None
        mark, packed_bytes, raw_bytes, checksum = _BLOCK.unpack(head)
        if mark != _BLOCK_MARK or raw_bytes > MOST_RAW_BYTES:
            raise self._damaged(at)
        if len(packed) < packed_bytes or zlib.crc32(packed) != checksum:
            return None
        try:
            raw = zlib.decompressobj().decompress(packed, raw_bytes + 1)
        except zlib.error as error:
            raise self._damaged(at) from error
        if len(raw) != raw_bytes:
            raise self._damaged(at)
        return raw

    def _damaged(self, at: int) -> NvtxmoeError:
        return NvtxmoeError(
            f"damaged journal at byte {at:,}",
            where=self.path,
            remedy="Merge the other journals by name, or capture again",
        )


def _columns(raw: bytes) -> Records | None:
    """A block's records; None where they don't fill it, or an event is unknown."""
    offsets = array("q")
    at = 0
    while at + _RECORD.size <= len(raw):
        stride = _RECORD.size + int.from_bytes(raw[at + 4 : at + 8], "little")
        number = _run_length(raw, at, stride)
        offsets.extend(range(at, at + number * stride, stride))
        at += number * stride
    if at != len(raw):
        return None
    place = np.frombuffer(offsets, np.int64) if offsets else np.zeros(0, np.int64)
    room = max(0, len(raw) - _RECORD.size + 1)
    heads: npt.NDArray[Any] = np.ndarray((room,), _RECORD_DTYPE, raw, strides=(1,))[place]
    if (heads["event"] >= len(EVENTS)).any():
        return None
    sizes = heads["size_bytes"].astype(np.int64)
    return Records(raw, heads["event"].copy(), place + _RECORD.size, sizes, heads["time_ns"].copy())


def _run_length(raw: bytes, at: int, stride: int) -> int:
    """How many records of the event and size of the one at ``at`` follow one another there, itself included.

    Where the first of two neighbours is a record, so is the second: a run is found by comparing what stands a stride
    apart, however many records it has.
    """
    head = raw[at : at + _ALIKE_BYTES]
    if raw[at + stride : at + stride + _ALIKE_BYTES] != head:
        return 1
    head_number, max_records = int.from_bytes(head, "little"), (len(raw) - _ALIKE_BYTES - at) // stride + 1
    number, window = 2, 64
    while number < max_records:
        heads: npt.NDArray[Any] = np.ndarray(
            (min(window, max_records - number),), "<u8", raw, at + number * stride, (stride,)
        )
        other = np.flatnonzero(heads != head_number)
        if len(other):
            return number + int(other[0])
        number, window = number + len(heads), 8 * window
    return number
