"""From the journals of a session to the same events that an export of nsys gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError, located
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import EVENTS, Journal, Records
from nvtxmoe_analysis.events.capture_state import capture_state
from nvtxmoe_analysis.events.decode import PAYLOAD_EVENTS, Events, decode
from nvtxmoe_analysis.events.journal_budget import Budget
from nvtxmoe_analysis.events.journal_file import JournalFile
from nvtxmoe_analysis.events.json_text import read_json
from nvtxmoe_analysis.events.table_decoders import COUNT_FIELDS, Groups, experts_of_pairs
from nvtxmoe_analysis.events.tables import narrowest
from nvtxmoe_analysis.events.windows import trimmed
from nvtxmoe_analysis.readers.session import KIND, Session, pid_in_name

#: Bytes of one count, or of the count of one pair.
COUNT_BYTES = 4
_NAMES = tuple(f"{schema.PHASE_PREFIX}{event}" for event in EVENTS)
_SPELLED = {"row": pl.Int64, "pid": pl.Int64, "start": pl.Int64, "name": pl.String, "blob": pl.Binary}


def read_session(session: Session) -> Events:
    """Read and decode every journal of a session, as far as it is written; of a window the steps that all ranks have.

    ``start`` of all rows is unix time in ns. A step's ``end`` is null: journals do not tell it.

    Raises:
        NvtxmoeError: what is no journal, a damaged one, or a schema number this version does not know.
    """
    reader = _Reader()
    files = {number: reader.read(path, number) for number, path in session.files.items()}
    events = decode(session.source, reader.groups, reader.spelled(), reader.steps(), padded=False)
    return trimmed(replace(events, encoding=KIND, journals=files))


class _Reader:
    """Sorts records into arrays of one event and size, a block at a time.

    Attributes:
        groups: by event, as ``events.decode`` takes them.
    """

    def __init__(self) -> None:
        self.groups: dict[str, Groups] = {name: [] for name in PAYLOAD_EVENTS}
        self._spelled: list[pl.DataFrame] = []
        self._budget = Budget()
        self._rows = 0

    def read(self, path: Path, number: int) -> JournalFile:
        """Read one journal; ``number`` becomes the ``pid`` of its rows."""
        journal = Journal(path)
        self._budget.begin(path.stat().st_size)
        for records in journal.bulk():
            with located(path, "Capture again"):
                self._add(records, number)
        end = {} if journal.ended is None else _end_record(path, journal.ended)
        with located(f"{path}, its end", "Capture again"):
            last_words = capture_state(end)
        return JournalFile(
            path=path,
            pid=pid_in_name(path),
            size_bytes=journal.size_bytes,
            truncated=journal.truncated,
            ended=journal.ended is not None,
            last_words=last_words,
            batches=_known_number(end, "steps"),
            idle_batches=_known_number(end, "idle_steps"),
        )

    def spelled(self) -> pl.DataFrame:
        """Samples, whose layout only the layer's top_k tells."""
        return pl.concat([pl.DataFrame(schema=_SPELLED), *self._spelled])

    def steps(self) -> pl.DataFrame:
        """The steps in file order."""
        rows = [rows for rows, _ in self.groups[schema.STEP]]
        unknown = pl.lit(None, pl.Int64)
        return pl.concat([pl.DataFrame(schema=dict.fromkeys(("row", "pid", "start"), pl.Int64)), *rows]).with_columns(
            globalTid="pid", end=unknown, int64Value=unknown
        )

    def _add(self, records: Records, number: int) -> None:
        kind = (records.event.astype(np.int64) << 32) | records.size_bytes
        order = np.argsort(kind, kind="stable")
        by_kind = np.split(order, np.flatnonzero(np.diff(kind[order])) + 1) if len(order) else []
        for indices in by_kind:
            self._budget.spend(
                _NAMES[int(records.event[indices[0]])], len(indices), int(records.size_bytes[indices[0]])
            )
        samples: list[npt.NDArray[np.int64]] = []
        for indices in by_kind:
            if _NAMES[int(records.event[indices[0]])] == schema.TOPK:
                samples.append(indices)  # of as many sizes as there are numbers of tokens
            else:
                self._add_alike(records, indices, number)
        if samples:
            self._add_samples(records, np.concatenate(samples), number)
        self._rows += len(records)

    def _add_samples(self, records: Records, indices: npt.NDArray[np.int64], number: int) -> None:
        starts, sizes = records.place[indices].tolist(), records.size_bytes[indices].tolist()
        blobs = [records.raw[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        rows = self._rows_of(records, indices, number, schema.TOPK)
        blob = pl.Series("blob", blobs, dtype=pl.Binary)
        self._spelled.append(rows.with_columns(blob, name=pl.lit(schema.TOPK)).select(*_SPELLED))

    def _add_alike(self, records: Records, indices: npt.NDArray[np.int64], number: int) -> None:
        """Add records of one event and size."""
        name = _NAMES[int(records.event[indices[0]])]
        self.groups[name].append(
            (self._rows_of(records, indices, number, name), _array(name, records.payloads(indices)))
        )

    def _rows_of(self, records: Records, indices: npt.NDArray[np.int64], number: int, name: str) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "row": self._rows + indices,
                "pid": np.full(len(indices), number),
                # Of moe.meta the last one counts, whatever the clock did meanwhile.
                "start": self._rows + indices if name == schema.META else records.time_ns[indices],
            }
        )


def _array(event: str, payloads: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Payloads of one size, uint8 [records, bytes], as structs; moe.meta stays bytes."""
    size_bytes = payloads.shape[1]
    if event == schema.META:
        return payloads
    if event == schema.STEP:
        return _viewed(event, payloads, schema.STEP_DTYPE)
    room = max(0, size_bytes - _HEADS[event].itemsize) // COUNT_BYTES
    if event == schema.PAIRS:
        return _viewed(event, payloads, schema.pairs_dtype(experts_of_pairs(room)))
    return _narrowed(_viewed(event, payloads, schema.counts_dtype(room)))


_HEADS = {
    schema.COUNTS: schema.counts_dtype(0),
    schema.PHYSICAL: schema.counts_dtype(0),
    schema.PAIRS: schema.pairs_dtype(0),
}


def _viewed(event: str, payloads: npt.NDArray[np.uint8], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    if payloads.shape[1] != dtype.itemsize:
        raise NvtxmoeError(f"damaged payload: {event} of {payloads.shape[1]} bytes")
    return payloads.reshape(-1).view(dtype)


def _narrowed(array: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The same with counts of the smallest type: most are small, and a long run has many."""
    counts = array["counts"]
    heads = [(name, array.dtype[name]) for name in COUNT_FIELDS]
    dtype = np.dtype([*heads, ("counts", narrowest(counts), counts.shape[1:])])
    out = np.empty(len(array), dtype)
    for name in (*COUNT_FIELDS, "counts"):
        out[name] = array[name]
    return out


def _end_record(path: Path, text: bytes) -> dict[str, Any]:
    with located(f"{path}, its end", "Capture again"):
        try:
            raw = read_json(text)
        except (ValueError, RecursionError) as error:
            raise NvtxmoeError(f"damaged payload: not JSON ({error})") from error
        if not isinstance(raw, dict):
            raise NvtxmoeError(f"damaged payload: a JSON object is wanted, found {type(raw).__name__}")
        return raw


def _known_number(end: dict[str, Any], key: str) -> int | None:
    """A number of the end record; null where it has none."""
    value = end.get(key)
    return value if type(value) is int and value >= 0 else None
