"""Records that wait to be written, in pieces of memory that are used again.

The pieces come from the system and go back to it. The C library kept the memory of records that had piled up while the
disk was late (docs/development/benchmarks-recording-memory.md).
"""

from __future__ import annotations

import mmap
from collections import deque

#: Bytes of a piece, unless a record is larger; the records of a piece are written as one block.
PIECE_BYTES = 1 << 20
#: Pieces that are kept for the next records.
MOST_SPARE = 2


class Piece:
    """Memory of ``size_bytes`` with whole records in the first ``used_bytes``."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.used_bytes = size_bytes, 0
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a forked child writes into its own copy
        self._memory = memoryview(mmap.mmap(-1, size_bytes, flags=flags))

    def room(self, size_bytes: int) -> memoryview | None:
        """Return memory for one or several records more, or None where there is too little."""
        end = self.used_bytes + size_bytes
        return self._memory[self.used_bytes : end] if end <= self.size_bytes else None

    def records(self) -> memoryview:
        """Return the records."""
        return self._memory[: self.used_bytes]


class WaitingRecords:
    """Records in the order in which they came. Not thread-safe.

    Attributes:
        size_bytes: of the records whose piece was not given back.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self._pieces: deque[Piece] = deque()
        self._spare: list[Piece] = []

    def add(self, records: bytes) -> None:
        """Add whole records."""
        self.room(len(records))[:] = records
        self.filled(len(records))

    def room(self, size_bytes: int) -> memoryview:
        """Return memory for whole records of so many bytes. They count once ``filled`` is called."""
        room = self._pieces[-1].room(size_bytes) if self._pieces else None
        if room is None:
            large = size_bytes > PIECE_BYTES
            piece = self._spare.pop() if self._spare and not large else Piece(max(size_bytes, PIECE_BYTES))
            self._pieces.append(piece)
            room = piece.room(size_bytes)
            assert room is not None
        return room

    def filled(self, size_bytes: int) -> None:
        """The memory of the last ``room`` has its records."""
        self._pieces[-1].used_bytes += size_bytes
        self.size_bytes += size_bytes

    def take(self) -> deque[Piece]:
        """Return the pieces, the first records first; what comes from now on is in others."""
        pieces, self._pieces = self._pieces, deque()
        return pieces

    def give_back(self, piece: Piece) -> None:
        """The records of a piece were written, or are given up."""
        self.size_bytes -= piece.used_bytes
        piece.used_bytes = 0
        if len(self._spare) < MOST_SPARE and piece.size_bytes == PIECE_BYTES:
            self._spare.append(piece)
