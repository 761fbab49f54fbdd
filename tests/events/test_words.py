"""The word form: what the encoder writes, the decoder reads, whatever is lost in between."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema, word_payloads
from nvtxmoe_analysis.events.decode import Events, read_events
from nvtxmoe_analysis.events.word_payloads import assemble, plausible
from nvtxmoe_analysis.readers.open import open_export
from tests.support.export_builder import Export, Process, simple_run

Mark = tuple[int, str, int]  # thread, message, word

payloads = st.tuples(st.sampled_from(schema.WORD_EVENTS), st.binary(max_size=80))


def frame(marks: list[Mark]) -> pl.DataFrame:
    """Marks as rows of an export, one nanosecond apart."""
    schema_: dict[str, type[pl.DataType]] = {
        "row": pl.Int64,
        "globalTid": pl.Int64,
        "start": pl.Int64,
        "name": pl.String,
        "int64Value": pl.Int64,
    }
    rows = [(i, tid, 100 + i, name, word) for i, (tid, name, word) in enumerate(marks)]
    return pl.DataFrame(rows, schema=schema_, orient="row")


def marks_of(event: str, payload: bytes, tid: int = 1) -> list[Mark]:
    return [(tid, name, word) for name, word in word_payloads.marks(event, payload)]


def padded(payload: bytes) -> bytes:
    return payload.ljust(-(-len(payload) // word_payloads.WORD_BYTES) * word_payloads.WORD_BYTES, b"\0")


@given(st.lists(payloads, max_size=8))
def test_payloads_come_back_in_order(sent: list[tuple[str, bytes]]) -> None:
    found = assemble(frame([mark for event, payload in sent for mark in marks_of(event, payload)]))
    assert found.events.select("name", "blob").rows() == [(f"moe.{e}", padded(p)) for e, p in sent]
    assert (found.truncated, found.damaged) == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 3), payloads), max_size=8), st.randoms(use_true_random=False))
def test_threads_that_interleave_are_told_apart(sent: list[tuple[int, tuple[str, bytes]]], random: Any) -> None:
    queues: dict[int, list[Mark]] = {}
    for tid, (event, payload) in sent:
        queues.setdefault(tid, []).extend(marks_of(event, payload, tid))
    mixed: list[Mark] = []
    while any(queues.values()):
        mixed.append(queues[random.choice([tid for tid, queue in queues.items() if queue])].pop(0))
    found = assemble(frame(mixed)).events
    for tid in queues:
        expected = [(f"moe.{e}", padded(p)) for t, (e, p) in sent if t == tid]
        assert found.filter(globalTid=tid).select("name", "blob").rows() == expected


@given(st.lists(payloads, max_size=6), st.data())
def test_lost_and_changed_marks_never_crash(sent: list[tuple[str, bytes]], data: st.DataObject) -> None:
    marks = [mark for event, payload in sent for mark in marks_of(event, payload)]
    if marks:
        lost = data.draw(st.sets(st.integers(0, len(marks) - 1)))
        marks = [mark for i, mark in enumerate(marks) if i not in lost]
    if marks:
        at = data.draw(st.integers(0, len(marks) - 1))
        marks[at] = (1, marks[at][1], data.draw(st.integers(-(1 << 63), (1 << 63) - 1)))
    found = assemble(frame(marks))
    # Each mark is in one payload at most.
    used = sum(1 + len(blob) // word_payloads.WORD_BYTES for blob in found.events["blob"])
    assert used <= len(marks)
    assert used == len(marks) or found.truncated + found.damaged > 0


def test_broken_payloads_are_counted() -> None:
    whole, other = marks_of("counts", b"c" * 40), marks_of("topk", b"t" * 16)
    cut_by_the_end = assemble(frame([*other, *whole[:-1]]))
    assert (len(cut_by_the_end.events), cut_by_the_end.truncated, cut_by_the_end.damaged) == (1, 1, 0)
    broken_off = assemble(frame([*whole[:3], *other]))
    assert (len(broken_off.events), broken_off.truncated, broken_off.damaged) == (1, 0, 1)
    without_payload = assemble(frame(other).with_columns(int64Value=pl.lit(None, pl.Int64)))
    assert (len(without_payload.events), without_payload.truncated) == (0, 1)
    negative = assemble(frame([(1, "moe.w.counts", -5), *other]))
    assert (len(negative.events), negative.damaged) == (1, 1)


def test_a_payload_that_cannot_be_what_it_says_is_damaged() -> None:
    sizes = {"step": (24, 40), "counts": (16,), "physical": (16,), "pairs": (24,)}
    for event, wrong in sizes.items():
        for size_bytes in wrong:
            found = plausible(assemble(frame(marks_of(event, b"x" * size_bytes))))
            assert (len(found.events), found.damaged) == (0, 1), (event, size_bytes)
    fine = {"step": 32, "counts": 24, "pairs": 32, "topk": 0, "meta": 8}
    for event, size_bytes in fine.items():
        found = plausible(assemble(frame(marks_of(event, b"x" * size_bytes))))
        assert (len(found.events), found.damaged) == (1, 0), event


def test_messages_are_a_fixed_set() -> None:
    """The nvtx module keeps every message for ever."""
    assert {word_payloads.message(event) for event in schema.WORD_EVENTS} == {
        "moe.w.meta", "moe.w.step", "moe.w.counts", "moe.w.physical", "moe.w.topk", "moe.w.pairs",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no word form"):
        word_payloads.message("layer.7")


@given(st.binary(max_size=100))
def test_words_are_signed_64_bit(payload: bytes) -> None:
    length, *body = word_payloads.encode(payload)
    assert length == len(body) == -(-len(payload) // 8)
    assert b"".join(w.to_bytes(8, "little", signed=True) for w in body) == padded(payload)


def events_of(export: Export) -> Events:
    with tempfile.TemporaryDirectory() as folder:
        return read_events(open_export(export.save(Path(folder) / "words.sqlite")))


@pytest.mark.parametrize("experts", [4, 5, 7, 32])
def test_every_event_reads_the_same_in_both_forms(experts: int) -> None:
    found = {}
    for encoding in ("binary", "words"):
        export = Export()
        worker = simple_run(export, encoding=encoding, experts=experts, top_k=3)
        worker.counts(0, 0, list(range(experts)), event="physical")
        pairs = list(range(schema.pairs_length(experts)))
        for layer in range(2):
            worker.mark("pairs", np.array((0, 2, layer, 0, 9, pairs), dtype=schema.pairs_dtype(experts)))
        found[encoding] = events_of(export)
    binary, spelled = found["binary"], found["words"]
    assert (binary.encoding, spelled.encoding) == ("binary", "words")
    assert binary.problems == spelled.problems == dict.fromkeys(binary.problems, 0)
    assert {pid: meta.raw for pid, meta in binary.metas.items()} == {p: m.raw for p, m in spelled.metas.items()}
    where = ["row", "start", "end"]
    assert binary.steps.drop(where).equals(spelled.steps.drop(where))
    for one, other in ((binary.counts, spelled.counts), (binary.physical, spelled.physical)):
        assert one.cells.drop("row", "start").equals(other.cells.drop("row", "start"))
        assert np.array_equal(one.matrix, other.matrix)
    assert binary.topk.tokens.equals(spelled.topk.tokens)
    assert np.array_equal(binary.topk.experts, spelled.topk.experts)
    assert np.array_equal(binary.topk.weights, spelled.topk.weights)
    assert binary.pairs.spans.equals(spelled.pairs.spans)
    assert [p.tolist() for p in binary.pairs.pairs] == [p.tolist() for p in spelled.pairs.pairs]


@pytest.mark.parametrize("experts", [4, 5])
def test_without_meta_an_odd_number_of_experts_gains_an_empty_one(experts: int) -> None:
    export = Export()
    worker = Process(export, encoding="words", experts=experts)
    with worker.step(7):
        pass
    worker.counts(7, 0, [3] * experts)
    counts = events_of(export).counts
    assert counts.cells["num_experts"].to_list() == [experts + experts % 2]
    assert counts.matrix.tolist() == [[3] * experts + [0] * (experts % 2)]


def test_samples_without_top_k_are_refused_by_name() -> None:
    export = Export()
    worker = Process(export, encoding="words")
    worker.topk(0, 5, [[1, 2]])
    with pytest.raises(NvtxmoeError, match=r"layer 5 can't be read: neither moe\.meta nor moe\.counts"):
        events_of(export)


def test_no_sampled_token_is_no_token() -> None:
    export = Export()
    worker = simple_run(export, encoding="words", steps=1)
    worker.mark("topk", np.zeros(0, dtype=schema.topk_dtype(2)))
    assert len(events_of(export).topk) == 6


def test_pairs_of_too_few_words_are_an_error() -> None:
    export = Export()
    worker = simple_run(export, encoding="words", steps=1, experts=8)
    worker.mark("pairs", np.array((0, 0, 0, 0, 3, [1] * 6), dtype=schema.pairs_dtype(4)))
    with pytest.raises(NvtxmoeError, match=r"moe\.w\.pairs of layer 0 holds 6 pairs of 8 experts"):
        events_of(export)


def test_a_capture_that_ends_within_a_payload() -> None:
    export = Export()
    simple_run(export, encoding="words", steps=2)
    while export.rows["NVTX_EVENTS"][-1]["textId"] == export.string("moe.w.topk"):
        export.rows["NVTX_EVENTS"].pop()
    export.rows["NVTX_EVENTS"].pop()  # the last word of the last counts
    events = events_of(export)
    assert events.problems == {**dict.fromkeys(events.problems, 0), "words_truncated": 1}
    assert len(events.counts) == 3


@pytest.mark.slow
@settings(max_examples=60)
@given(st.sets(st.integers(0, 400)), st.integers(0, 400), st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_damaged_capture_is_read_or_refused(lost: set[int], at: int, word: int) -> None:
    export = Export()
    simple_run(export, encoding="words", steps=2)
    rows = export.rows["NVTX_EVENTS"]
    rows[at % len(rows)]["int64Value"] = word
    export.rows["NVTX_EVENTS"] = [row for i, row in enumerate(rows) if i not in lost or row["eventType"] == 75]
    try:
        events = events_of(export)
    except NvtxmoeError:
        return
    assert all(count >= 0 for count in events.problems.values())


def test_the_json_of_meta_is_whole() -> None:
    export = Export()
    worker = Process(export, encoding="words", meta={"device": "x" * 13})
    worker.send_meta()
    (meta,) = events_of(export).metas.values()
    assert json.dumps(meta.raw) == json.dumps(worker.meta)
