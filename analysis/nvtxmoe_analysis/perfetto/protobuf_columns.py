"""Protocol-buffer messages of one shape, many at a time: columns of values in, bytes out.

A trace of 5 million kernels is 10 million packets. Generated protobuf classes build them one by one, and take 5 to 7
times as long per slice; here numpy writes one field of all of them at once. Only what a trace needs is there: varints,
doubles, constant bytes, and messages of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Bools, Ints

Bytes = npt.NDArray[np.uint8]

_VARINT, _FIXED64, _LENGTH = 0, 1, 2


# One message at a time ------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number that is not negative, base 128, lowest digits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3 | _VARINT) + varint(value)


def block(field: int, content: bytes | str) -> bytes:
    """A field of bytes, text, or a message."""
    data = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | _LENGTH) + varint(len(data)) + data


# Columns of messages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw:
    """The same bytes, whole fields, in every message."""

    data: bytes


@dataclass(frozen=True)
class Numbers:
    """A varint field: ``values`` int64 [n]; ``present`` [n] says which messages have it."""

    field: int
    values: Ints
    present: Bools | None = None


@dataclass(frozen=True)
class Doubles:
    """A field of doubles: ``values`` float64 [n]."""

    field: int
    values: npt.NDArray[np.float64]
    present: Bools | None = None


@dataclass(frozen=True)
class Message:
    """A message in each message."""

    field: int
    parts: Sequence[Part]
    present: Bools | None = None


Part = Raw | Numbers | Doubles | Message


class Encoded:
    """``n`` messages of the same parts, measured and ready to be written.

    Attributes:
        sizes: int64 [n], bytes of each.
    """

    def __init__(self, n: int, parts: Sequence[Part]) -> None:
        self._leaves: list[_Leaf] = []
        self.sizes = self._measure(n, parts)

    def write(self, out: Bytes, at: Ints) -> None:
        """Write each message into ``out``, at its position of ``at`` [n]."""
        position = at.copy()
        for leaf in self._leaves:
            leaf.write(out, position)

    def _measure(self, n: int, parts: Sequence[Part]) -> Ints:
        total = np.zeros(n, dtype=np.int64)
        for part in parts:
            total += self._measure_one(n, part)
        return total

    def _measure_one(self, n: int, part: Part) -> Ints:
        if isinstance(part, Raw):
            return self._add(_Leaf(part.data, None, None, n))
        if isinstance(part, Message):
            return self._measure_message(n, part)
        if isinstance(part, Doubles):
            data = np.ascontiguousarray(part.values, dtype="<f8").view(np.uint8).reshape(n, 8)
            return self._add(_Leaf(varint(part.field << 3 | _FIXED64), data, None, n, part.present))
        return self._add(_Leaf(varint(part.field << 3 | _VARINT), None, part.values, n, part.present))

    def _measure_message(self, n: int, part: Message) -> Ints:
        place = len(self._leaves)
        inside = self._measure(n, part.parts)
        for leaf in self._leaves[place:]:
            leaf.restrict(part.present)
        head = _Leaf(varint(part.field << 3 | _LENGTH), None, inside, n, part.present)
        size = self._add(head)
        self._leaves.insert(place, self._leaves.pop())  # the length comes first
        return size + (inside if part.present is None else np.where(part.present, inside, 0))

    def _add(self, leaf: _Leaf) -> Ints:
        self._leaves.append(leaf)
        return leaf.sizes()


@dataclass
class _Leaf:
    """Constant bytes, then the eight of ``fixed`` or a varint of ``values``, in the messages that are ``present``."""

    head: bytes
    fixed: Bytes | None
    values: Ints | None
    n: int
    present: Bools | None = None
    _lengths: Ints | None = None

    def restrict(self, present: Bools | None) -> None:
        if present is not None:
            self.present = present if self.present is None else self.present & present

    def sizes(self) -> Ints:
        sizes = np.full(self.n, len(self.head) + (0 if self.fixed is None else 8), dtype=np.int64)
        if self.values is not None:
            self._lengths = varint_sizes(self.values)
            sizes += self._lengths
        return sizes if self.present is None else np.where(self.present, sizes, 0)

    def write(self, out: Bytes, position: Ints) -> None:
        """Write the field and move the positions past it."""
        chosen = None if self.present is None else np.flatnonzero(self.present)
        at = position if chosen is None else position[chosen]
        for offset, byte in enumerate(self.head):
            out[at + offset] = byte
        grown: Ints | int = len(self.head)
        if self.fixed is not None:
            data = self.fixed if chosen is None else self.fixed[chosen]
            for offset in range(8):
                out[at + grown + offset] = data[:, offset]
            grown += 8
        if self.values is not None and self._lengths is not None:
            values, lengths = self.values, self._lengths
            if chosen is not None:
                values, lengths = values[chosen], lengths[chosen]
            _write_varints(out, at + grown, values, lengths)
            grown = grown + lengths
        if chosen is None:
            position += grown
        else:
            position[chosen] += grown


def varint_sizes(values: Ints) -> Ints:
    """Bytes that each number takes as a varint: ten where it is negative, as int64 fields have it."""
    sizes = np.ones(len(values), dtype=np.int64)
    largest = int(values.max(initial=0))
    for digits in range(1, 9):
        if largest < 1 << 7 * digits:
            break
        sizes += values >= 1 << 7 * digits
    return np.where(values < 0, 10, sizes)


def _write_varints(out: Bytes, at: Ints, values: Ints, lengths: Ints) -> None:
    bits = values.astype(np.uint64)
    for digit in range(int(lengths.max(initial=0))):
        continued = slice(None) if digit == 0 else np.flatnonzero(lengths > digit)
        more = (lengths[continued] > digit + 1).astype(np.uint8) << 7
        out[at[continued] + digit] = (bits[continued] >> 7 * digit & 0x7F).astype(np.uint8) | more


def interleave(groups: Sequence[tuple[Encoded, Ints]]) -> bytes:
    """Messages of several kinds as one string of bytes.

    Parameters:
        groups: messages, and the place of each in the order; the places of all groups are 0, 1, 2, ...
    """
    total = sum(len(rows) for _, rows in groups)
    sizes = np.zeros(total, dtype=np.int64)
    for encoded, rows in groups:
        sizes[rows] = encoded.sizes
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]) if total else 0, dtype=np.uint8)
    for encoded, rows in groups:
        encoded.write(out, ends[rows] - sizes[rows])
    return out.tobytes()
