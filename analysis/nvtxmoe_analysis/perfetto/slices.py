"""Slices of a track, with their arguments, as packets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Bools, Ints
from nvtxmoe_analysis.core.grouping import dense
from nvtxmoe_analysis.perfetto import messages as m
from nvtxmoe_analysis.perfetto.protobuf_columns import Doubles, Encoded, Message, Numbers, Part, Raw, interleave, number

#: Events that are encoded at a time: their columns stay in the processor's cache.
BLOCK_EVENTS = 1 << 16


@dataclass(frozen=True)
class Slices:
    """Slices of one or more tracks.

    Attributes:
        frame: ``start``, ``end`` (ns of the trace), ``name``, ``category`` (String or Categorical), and any other
            columns: the arguments, integers, floats or text, absent where null.
    """

    frame: pl.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def start(self) -> Ints:
        """Begins, ns."""
        return self.frame["start"].to_numpy()

    @property
    def end(self) -> Ints:
        """Ends, ns."""
        return self.frame["end"].to_numpy()


def of_track(slices: Slices, sequence: int, uuid: int, events: Ints) -> Iterator[bytes]:
    """The packets of one track.

    Parameters:
        slices: they may be those of several tracks.
        events: see ``lanes.lay``.

    Raises:
        NvtxmoeError: a time is negative.
    """
    rows = np.unique(events >> 1)
    columns = _Columns(slices.frame[rows])
    yield m.sequence_start(sequence, columns.interned, uuid)
    place = np.searchsorted(rows, events >> 1)
    for at in range(0, len(events), BLOCK_EVENTS):
        part, kind = place[at : at + BLOCK_EVENTS], events[at : at + BLOCK_EVENTS] & 1
        begins, ends = np.flatnonzero(kind == 0), np.flatnonzero(kind == 1)
        yield interleave(
            [
                (_packets(sequence, columns.start[part[begins]], m.BEGIN, columns.parts(part[begins])), begins),
                (_packets(sequence, columns.end[part[ends]], m.END, []), ends),
            ]
        )


def _packets(sequence: int, time_ns: Ints, kind: int, parts: Sequence[Part]) -> Encoded:
    event = Message(m.TRACK_EVENT, [Raw(number(m.TYPE, kind)), *parts])
    return Encoded(len(time_ns), [Message(m.PACKET, [*_head(sequence, time_ns), event])])


def _head(sequence: int, time_ns: Ints) -> list[Part]:
    return [
        Numbers(m.TIMESTAMP, checked(time_ns)),
        Raw(number(m.SEQUENCE, sequence) + number(m.FLAGS, m.NEEDS_STATE)),
    ]


def checked(time_ns: Ints) -> Ints:
    """Times, none of which is negative."""
    if time_ns.min(initial=0) < 0:
        raise NvtxmoeError(
            "an operation lies before all ranges of the capture: the times are damaged",
            remedy="Export the report again",
        )
    return time_ns


class _Columns:
    """The slices of one track: times, and the parts of their events, with texts interned."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.start, self.end = frame["start"].to_numpy(), frame["end"].to_numpy()
        names = [name for name in frame.columns if name not in {"start", "end", "name", "category"}]
        self._name, texts = _coded(frame["name"])
        self._category, categories = _coded(frame["category"])
        self.interned: dict[int, Sequence[str]] = {m.CATEGORIES: categories, m.NAMES: texts, m.ARGUMENT_NAMES: names}
        self._arguments: list[_Argument] = []
        interned_texts: list[str] = []
        for ident, name in enumerate(names, start=1):
            argument, more = _argument(ident, frame[name], len(interned_texts))
            self._arguments.append(argument)
            interned_texts += more
        self.interned[m.TEXTS] = interned_texts

    def parts(self, rows: Ints) -> list[Part]:
        """Of the events that begin these slices."""
        return [
            Numbers(m.CATEGORY, self._category[rows]),
            Numbers(m.NAME, self._name[rows]),
            *(argument.part(rows) for argument in self._arguments),
        ]


@dataclass(frozen=True)
class _Argument:
    ident: int
    field: int
    values: npt.NDArray[Any]
    present: Bools | None

    def part(self, rows: Ints) -> Part:
        values = self.values[rows]
        value: Part = Doubles(self.field, values) if self.field == m.ARGUMENT_DOUBLE else Numbers(self.field, values)
        present = None if self.present is None else self.present[rows]
        return Message(m.ANNOTATION, [Raw(number(m.ARGUMENT_NAME, self.ident)), value], present)


def _argument(ident: int, column: pl.Series, first_text: int) -> tuple[_Argument, list[str]]:
    """An argument, and the texts that it needs; so many are told already."""
    present = column.is_not_null().to_numpy() if column.null_count() else None
    if column.dtype.is_float():
        return _Argument(ident, m.ARGUMENT_DOUBLE, column.fill_null(0).to_numpy(), present), []
    if column.dtype.is_integer() or column.dtype == pl.Boolean:
        kind = m.ARGUMENT_BOOL if column.dtype == pl.Boolean else m.ARGUMENT_INT
        return _Argument(ident, kind, column.cast(pl.Int64).fill_null(0).to_numpy(), present), []
    codes, texts = _coded(column)
    return _Argument(ident, m.ARGUMENT_TEXT, codes + first_text, present), texts


def _coded(column: pl.Series) -> tuple[Ints, list[str]]:
    """Text as numbers from 1 on, and what they stand for; nulls are any."""
    text = column.cast(pl.Categorical) if column.dtype == pl.String else column
    physical = text.to_physical().fill_null(0).to_numpy().astype(np.int64)
    used, codes = dense(physical)
    with_value = np.flatnonzero(column.is_not_null().to_numpy())
    first = np.zeros(len(used), dtype=np.int64)
    first[codes[with_value]] = with_value  # any row that has it
    texts = ["" if value is None else value for value in text.gather(first).cast(pl.String).to_list()]
    return codes + 1, texts
