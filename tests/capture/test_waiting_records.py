"""Memory of records that wait to be written: it is used again, and goes back after a late disk."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

from nvtxmoe.capture.run_identity import Step
from nvtxmoe.capture.sinks import journal as journal_sink
from nvtxmoe.capture.sinks import waiting_records
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.capture.sinks.waiting_records import MOST_SPARE, PIECE_BYTES, WaitingRecords
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import Journal
from tests.support.journal_reader import records_of_journal

STEPS = 4_000
#: Growth of Python's memory over STEPS steps. An object of 64 bytes per step would be 256 kB.
MOST_GROWTH_BYTES = 64_000


def test_records_are_taken_in_order_and_none_is_split() -> None:
    waiting = WaitingRecords()
    records = [bytes([number]) * (PIECE_BYTES // 3) for number in range(7)] + [b"x" * (2 * PIECE_BYTES), b"y"]
    for one in records:
        waiting.add(one)
    assert waiting.size_bytes == sum(map(len, records))
    pieces = waiting.take()
    assert [bytes(piece.records()) for piece in pieces] == [
        b"".join(records[:3]), b"".join(records[3:6]), records[6], records[7], records[8],
    ]  # fmt: skip
    for piece in pieces:
        waiting.give_back(piece)
    assert waiting.size_bytes == 0


def test_pieces_are_used_again_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A steady writer makes no new memory; what piled up once goes back."""
    made: list[weakref.ref[waiting_records.Piece]] = []

    class Counted(waiting_records.Piece):
        def __init__(self, size_bytes: int) -> None:
            super().__init__(size_bytes)
            made.append(weakref.ref(self))

    monkeypatch.setattr(waiting_records, "Piece", Counted)
    waiting = WaitingRecords()

    def write() -> None:
        pieces = waiting.take()
        while pieces:
            waiting.give_back(pieces.popleft())

    for _ in range(500):
        waiting.add(bytes(PIECE_BYTES // 2))
        write()
    assert len(made) == 1
    for _ in range(20):
        waiting.add(bytes(PIECE_BYTES))
    write()
    gc.collect()
    assert sum(piece() is not None for piece in made) == MOST_SPARE


def steps_of(sink: JournalSink, first: int, number: int) -> None:
    """Steps of eight layers; what waits is written every 16 steps, as the thread would."""
    rows = np.zeros(8, schema.counts_dtype(64))
    for step in range(first, first + number):
        sink.step_begins(Step(step, 0, 2, 1, 0, 2))
        rows["step"], rows["counts"] = step, step % 7
        sink.payloads(schema.COUNTS, rows)
        sink.step_ends()
        if step % 16 == 15:
            sink.flush()


def test_a_journal_keeps_nothing_of_a_step(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path, 0, 3600)
    steps_of(sink, 0, 512)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        steps_of(sink, 512, STEPS)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sink.close({})
    assert after - before < MOST_GROWTH_BYTES
    assert len(list(records_of_journal(Journal(sink.path)))) == 9 * (512 + STEPS)


def test_rows_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    """A failure while records are filled in leaves no half record, which would damage the journal."""
    sink = JournalSink(tmp_path, 0, 3600)
    rows = np.zeros(2, schema.counts_dtype(4))
    with pytest.raises(KeyError):
        sink.payloads("moe.unknown", rows)
    sink.flush()
    assert sink.path.stat().st_size == 8  # no empty block
    sink.payloads(schema.COUNTS, rows[:0])
    sink.payloads(schema.COUNTS, rows)
    sink.close({})
    assert [event for event, _, _ in records_of_journal(Journal(sink.path))] == ["counts", "counts"]


def test_what_waits_counts_until_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is late, no more than MOST_BYTES wait in all."""
    monkeypatch.setattr(journal_sink, "MOST_BYTES", 2_000)
    sink = JournalSink(tmp_path, 0, 3600)
    append, seen = sink._writer.append, []

    def late(records: memoryview) -> None:
        for number in range(100):
            sink.step_begins(Step(number, 0, 1, 1, 1, 0))
        sink.meta(b"{}")
        seen.append(sink._waiting.size_bytes)
        append(records)

    sink.meta(b"{}")
    monkeypatch.setattr(sink._writer, "append", late)
    sink.flush()
    assert 0 < seen[0] <= 2_000
    assert sink.dropped > 0
    sink.close({})
