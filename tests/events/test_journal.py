"""Journals: what is written is read, one record or a block at a time; what is cut off or changed is never taken."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import EVENTS, MAGIC, MOST_RAW_BYTES, Journal, JournalWriter, block, record, records_of
from tests.support.journal_reader import records_of_journal

Found = list[tuple[str, int, bytes]]

NAMES = EVENTS[:-1]
records = st.tuples(st.sampled_from(NAMES), st.integers(-(1 << 63), (1 << 63) - 1), st.binary(max_size=40))
#: Runs of records of one event and size, as a step's counts are.
runs = st.tuples(st.sampled_from(NAMES), st.integers(0, 20), st.integers(1, 40)).map(
    lambda run: [(run[0], at, bytes([at % 251]) * run[1]) for at in range(run[2])]
)
blocks = st.lists(st.one_of(st.lists(records, max_size=6), runs), max_size=5)


def packed(parts: list[Found]) -> bytes:
    """A journal's bytes."""
    return MAGIC + b"".join(block(b"".join(record(*one) for one in part)) for part in parts)


def one_by_one(path: Path) -> tuple[Journal, Found]:
    journal = Journal(path)
    return journal, list(records_of_journal(journal))


def in_bulk(path: Path) -> tuple[Journal, Found]:
    journal = Journal(path)
    found: Found = []
    for part in journal.bulk():
        for at in range(len(part)):
            only = np.array([at])
            found.append((EVENTS[int(part.event[at])], int(part.time_ns[at]), part.payloads(only).tobytes()))
    return journal, found


READERS = pytest.mark.parametrize("read", [one_by_one, in_bulk])
Reader = Callable[[Path], tuple[Journal, Found]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "rank0-1.journal"


# What is written is read ---------------------------------------------------------------------------------------------


@READERS
@given(sent=blocks)
def test_records_come_back_in_order(path: Path, read: Reader, sent: list[Found]) -> None:
    path.unlink(missing_ok=True)
    writer = JournalWriter(path)
    for part in sent:
        writer.append(b"".join(record(*one) for one in part))
    writer.close()
    journal, found = read(path)
    assert found == [one for part in sent for one in part]
    assert (journal.truncated, journal.ended, journal.size_bytes) == (False, None, path.stat().st_size)


@READERS
@pytest.mark.parametrize("number", [2, 63, 65, 66, 67, 577, 578, 579, 5000])
def test_long_runs(path: Path, read: Reader, number: int) -> None:
    """Runs are compared in windows of 64, 512, ... records; others of the same size stand on both sides."""
    rows = np.zeros(number, schema.counts_dtype(3))
    rows["step"] = np.arange(number)
    mine = [("counts", 7, row.tobytes()) for row in rows]
    other = ("physical", 7, bytes(schema.counts_dtype(3).itemsize))
    raw = record(*other) + records_of("counts", 7, rows) + record(*other)
    path.write_bytes(MAGIC + block(raw))
    assert read(path)[1] == [other, *mine, other]


@READERS
def test_the_end_is_kept_apart(path: Path, read: Reader) -> None:
    sent: Found = [("meta", 1, b"{}"), ("end", 2, b'{"steps": 0}')]
    path.write_bytes(packed([sent[:1], sent[1:]]))
    journal, found = read(path)
    assert (found, journal.ended, journal.truncated) == (sent[:1], b'{"steps": 0}', False)


def test_payloads_of_one_size_as_a_matrix(path: Path) -> None:
    sent: Found = [("counts", 1, b"abcd"), ("step", 2, b"x"), ("counts", 3, b"efgh"), ("meta", 4, b"")]
    path.write_bytes(packed([sent]))
    (part,) = Journal(path).bulk()
    assert part.payloads(np.array([2, 0])).tobytes() == b"efghabcd"
    assert part.payloads(np.array([2, 0])).shape == (2, 4)
    assert part.payloads(np.array([3])).shape == (1, 0)
    assert part.payloads(np.array([], np.int64)).shape == (0, 0)
    assert part.size_bytes.tolist() == [4, 1, 4, 0]


@given(raw=st.binary(max_size=120))
@settings(max_examples=300)
def test_both_readers_refuse_the_same_blocks(path: Path, raw: bytes) -> None:
    """Blocks that are whole, but hold anything."""
    path.write_bytes(MAGIC + block(raw))
    assert outcome(one_by_one, path) == outcome(in_bulk, path)


@given(
    sent=st.lists(records, min_size=1, max_size=4),
    at=st.integers(0, 1000),
    byte=st.integers(0, 255),
    cut=st.integers(0, 8),
)
@settings(max_examples=300)
def test_both_readers_refuse_the_same_records(path: Path, sent: Found, at: int, byte: int, cut: int) -> None:
    """Records of which one byte is another, and the last bytes are lost."""
    raw = bytearray(b"".join(record(*one) for one in sent))
    raw[at % len(raw)] = byte
    path.write_bytes(MAGIC + block(bytes(raw[: len(raw) - cut])))
    assert outcome(one_by_one, path) == outcome(in_bulk, path)


def outcome(read: Reader, path: Path) -> tuple[Found, bytes | None] | str:
    try:
        journal, found = read(path)
    except NvtxmoeError as error:
        return str(error)
    return found, journal.ended


# Cut off -------------------------------------------------------------------------------------------------------------

PARTS: list[Found] = [
    [("meta", 1, b'{"schema": 1}'), ("step", 2, bytes(range(32)))],
    [("counts", 3, bytes(range(40))), ("counts", 3, bytes(range(40, 80)))],
    [("topk", 4, bytes(range(100, 140))), ("pairs", 5, b"p" * 32)],
]


@READERS
def test_cut_anywhere_the_whole_blocks_are_there(path: Path, read: Reader) -> None:
    """A killed process loses what it had not written, and nothing else."""
    whole = packed(PARTS)
    ends = [len(packed(PARTS[:n])) for n in range(len(PARTS) + 1)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        journal, found = read(path)
        complete = sum(end <= size for end in ends[1:])
        assert found == [one for part in PARTS[:complete] for one in part], size
        assert journal.truncated == (size not in ends), size
        assert journal.size_bytes == size


@READERS
def test_one_changed_bit_is_never_taken_for_data(path: Path, read: Reader) -> None:
    """An error; or, as far as the file's last block can't be told from one that was cut off, the blocks before it."""
    whole = packed(PARTS)
    refused = shortened = 0
    for at in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            try:
                journal, found = read(path)
            except NvtxmoeError:
                refused += 1
                continue
            assert journal.truncated, (at, bit)
            assert found in [[one for part in PARTS[:n] for one in part] for n in range(len(PARTS))], (at, bit)
            shortened += 1
    assert refused + shortened == 8 * len(whole)
    assert refused > 0 < shortened


@READERS
def test_a_journal_that_is_still_written(path: Path, read: Reader) -> None:
    """Read as far as it was when that began, whatever comes meanwhile."""
    path.unlink(missing_ok=True)
    writer = JournalWriter(path)
    writer.append(b"".join(record(*one) for one in PARTS[0]))
    reading = records_of_journal(Journal(path))
    assert next(reading) == PARTS[0][0]
    writer.append(b"".join(record(*one) for one in PARTS[1]))
    assert list(reading) == PARTS[0][1:]
    assert read(path)[1] == PARTS[0] + PARTS[1]
    writer.close()


# No journal, or a damaged one ----------------------------------------------------------------------------------------


def with_block(mark: bytes, packed_bytes: bytes, raw_bytes: int) -> bytes:
    head = struct.pack("<4sIII", mark, len(packed_bytes), raw_bytes, zlib.crc32(packed_bytes))
    return MAGIC + head + packed_bytes


DAMAGED = {
    "another file": (b"SQLite format 3\0", "not a journal of nvtxmoe. Give a session's folder"),
    "a later format": (b"NVTXMOE2", "a journal of another format, b'2', and this nvtxmoe reads b'1'"),
    "no block": (with_block(b"BLK2", zlib.compress(b""), 0), "damaged journal at byte 8. Merge the other"),
    "no zlib": (with_block(b"BLK1", b"anything", 8), "damaged journal at byte 8"),
    "more than it says": (with_block(b"BLK1", zlib.compress(b"abc"), 2), "damaged journal at byte 8"),
    "less than it says": (with_block(b"BLK1", zlib.compress(b"abc"), 4), "damaged journal at byte 8"),
    "too large": (with_block(b"BLK1", zlib.compress(b""), MOST_RAW_BYTES + 1), "damaged journal at byte 8"),
    "half a record": (MAGIC + block(record("step", 1, b"x" * 9)[:-1]), "damaged journal at byte 8"),
    "half a record's head": (MAGIC + block(record("step", 1, b"x")[:12]), "damaged journal at byte 8"),
    "an unknown event": (MAGIC + block(struct.pack("<IIq", len(EVENTS), 0, 1)), "damaged journal at byte 8"),
}


@READERS
@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_refused(path: Path, read: Reader, what: str) -> None:
    content, said = DAMAGED[what]
    path.write_bytes(content)
    with pytest.raises(NvtxmoeError, match="journal") as caught:
        read(path)
    assert said in str(caught.value)
    assert caught.value.where == str(path)


@READERS
def test_damage_before_the_end_is_no_truncation(path: Path, read: Reader) -> None:
    """A block whose checksum is wrong, with another one behind it."""
    whole = bytearray(packed(PARTS))
    second = len(packed(PARTS[:1]))
    whole[second + 20] ^= 1
    path.write_bytes(whole)
    with pytest.raises(NvtxmoeError, match=f"damaged journal at byte {second}"):
        read(path)
