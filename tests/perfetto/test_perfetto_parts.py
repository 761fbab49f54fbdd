"""The encoder against protobuf's own, lanes against their rules, and one axis for several reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.perfetto import messages as m
from nvtxmoe_analysis.perfetto.export import export_trace
from nvtxmoe_analysis.perfetto.lanes import lay
from nvtxmoe_analysis.perfetto.protobuf_columns import (
    Doubles,
    Encoded,
    Message,
    Numbers,
    Part,
    Raw,
    interleave,
    number,
    varint,
)
from nvtxmoe_analysis.perfetto.slices import Slices, of_track
from nvtxmoe_analysis.perfetto.time_axis import COLLECTIVES, NONE, OWN, RECORDED
from tests.support.collective_simulation import Clock, Run, uneven
from tests.support.perfetto_reader import Trace, read

# The encoder ----------------------------------------------------------------------------------------------------------

int64 = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 300)
row = st.tuples(
    st.integers(0, (1 << 63) - 1), int64, st.booleans(), st.floats(allow_nan=False), st.booleans(), st.booleans()
)


@settings(max_examples=200)
@given(st.lists(row, max_size=20))
def test_messages_equal_protobufs(rows: list[tuple[int, int, bool, float, bool, bool]]) -> None:
    """Numbers of all sizes, negative ones, doubles, fields and messages that are absent in some, no byte more."""
    times, ints, has_int, floats, has_float, has_event = (
        (list(column) for column in zip(*rows, strict=True)) if rows else ([],) * 6
    )
    event = Message(
        m.TRACK_EVENT,
        [
            Raw(number(m.TYPE, m.COUNTED)),
            Message(m.ANNOTATION, [Numbers(m.ARGUMENT_INT, np.array(ints, np.int64))], np.array(has_int, bool)),
            Doubles(m.DOUBLE_COUNTER, np.array(floats, float), np.array(has_float, bool)),
        ],
        np.array(has_event, bool),
    )
    parts: list[Part] = [Numbers(m.TIMESTAMP, np.array(times, np.int64)), event]
    encoded = Encoded(len(rows), [Message(m.PACKET, parts)])
    data = interleave([(encoded, np.arange(len(rows)))])
    expected = proto.Trace()
    for time, value, with_int, double, with_float, with_event in rows:
        packet = expected.packet.add(timestamp=time)
        if with_event:
            packet.track_event.type = m.COUNTED
            if with_int:
                packet.track_event.debug_annotations.add(int_value=value)
            if with_float:
                packet.track_event.double_counter_value = double
    assert proto.Trace.FromString(data) == expected
    assert len(data) == expected.ByteSize()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, (1 << 32) - 1, (1 << 64) - 1])
def test_one_number(value: int) -> None:
    expected = proto.TracePacket(timestamp=value).SerializeToString()
    assert number(m.TIMESTAMP, value) == expected
    assert varint(m.TIMESTAMP << 3) + varint(value) == expected


def test_groups_are_interleaved() -> None:
    ones = Encoded(2, [Message(m.PACKET, [Numbers(m.TIMESTAMP, np.array([10, 30]))])])
    others = Encoded(1, [Message(m.PACKET, [Numbers(m.TIMESTAMP, np.array([1 << 60]))])])
    data = interleave([(ones, np.array([0, 2])), (others, np.array([1]))])
    assert [packet.timestamp for packet in proto.Trace.FromString(data).packet] == [10, 1 << 60, 30]


def test_fields_are_numbered_as_perfetto_numbers_them() -> None:
    for message, names in {
        proto.Trace: {"packet": m.PACKET},
        proto.TracePacket: {
            "timestamp": m.TIMESTAMP,
            "trusted_packet_sequence_id": m.SEQUENCE,
            "sequence_flags": m.FLAGS,
            "track_event": m.TRACK_EVENT,
        },
        proto.TrackEvent: {
            "type": m.TYPE,
            "category_iids": m.CATEGORY,
            "name_iid": m.NAME,
            "debug_annotations": m.ANNOTATION,
            "track_uuid": m.TRACK,
            "counter_value": m.COUNTER,
            "double_counter_value": m.DOUBLE_COUNTER,
        },
        proto.DebugAnnotation: {
            "name_iid": m.ARGUMENT_NAME,
            "bool_value": m.ARGUMENT_BOOL,
            "int_value": m.ARGUMENT_INT,
            "double_value": m.ARGUMENT_DOUBLE,
            "string_value_iid": m.ARGUMENT_TEXT,
        },
        proto.InternedData: {
            "event_categories": m.CATEGORIES,
            "event_names": m.NAMES,
            "debug_annotation_names": m.ARGUMENT_NAMES,
            "debug_annotation_string_values": m.TEXTS,
        },
    }.items():
        descriptor: Any = message.DESCRIPTOR
        assert {name: descriptor.fields_by_name[name].number for name in names} == names


# Lanes ----------------------------------------------------------------------------------------------------------------

span = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda one: (one[0], one[0] + one[1]))


@settings(max_examples=300)
@given(st.lists(span, max_size=25), st.booleans())
def test_lanes_are_stacks(spans: list[tuple[int, int]], nested: bool) -> None:
    """Each slice begins and ends once, on one lane; what begins last ends first; times rise."""
    start, end = (np.array([one[i] for one in spans], dtype=np.int64) for i in (0, 1))
    seen: list[int] = []
    for events in lay(start, end, nested=nested):
        stack: list[int] = []
        times = []
        for event in events.tolist():
            index, ends = event >> 1, event & 1
            times.append(spans[index][ends])
            if ends:
                assert stack.pop() == index
            else:
                assert nested or not stack
                stack.append(index)
                seen.append(index)
        assert not stack
        assert times == sorted(times)
    assert sorted(seen) == list(range(len(spans)))


@pytest.mark.parametrize(
    ("spans", "nested", "lanes"),
    [
        ([], False, 0),
        ([(0, 5), (5, 9), (9, 9), (9, 12)], False, 1),
        ([(0, 5), (4, 9), (6, 7)], False, 2),
        ([(0, 9), (2, 4), (4, 6)], True, 1),
        ([(0, 9), (2, 4), (4, 6)], False, 2),
        ([(0, 5), (4, 9)], True, 2),
        ([(0, 9), (0, 9)], True, 1),
    ],
)
def test_how_many_lanes(spans: list[tuple[int, int]], nested: bool, lanes: int) -> None:
    start, end = (np.array([one[i] for one in spans], dtype=np.int64) for i in (0, 1))
    assert len(lay(start, end, nested=nested)) == lanes


def test_the_first_of_equal_slices_is_the_outer_one() -> None:
    times = np.array([3, 3]), np.array([8, 8])
    assert [events.tolist() for events in lay(*times, nested=True)] == [[0, 2, 3, 1]]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void vllm::moe::topkGating<float, 4>(float const*, int)", "vllm::moe::topkGating"),
        ("fused_moe_kernel", "fused_moe_kernel"),
        ("[CUDA memcpy Device-to-Device]", "[CUDA memcpy Device-to-Device]"),
        ("<lambda>(int)", "<lambda>(int)"),
        ("void (anonymous namespace)::k<int>(int)", "(anonymous namespace)::k<int>(int)"),
        ("", ""),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name) == short


# One axis -------------------------------------------------------------------------------------------------------------


def traced(folder: Path, run: Run) -> tuple[Trace, Any]:
    """The trace of a simulated run, one input a report."""
    paths = [export.save(folder / f"node{i}.sqlite") for i, export in enumerate(run.build())]
    done = export_trace(paths, folder / "out.pftrace", everything=True)
    return read(folder / "out.pftrace"), done


def starts(trace: Trace, name: str) -> dict[tuple[int, int, int], int]:
    """Begin of the slices of a kernel's name by (rank, step, layer)."""
    found = {}
    for one in trace.slices:
        if " stream " in trace.path(one.track)[-1] and one.name == name:
            rank = int(trace.path(one.track)[0].split()[1])
            found[rank, one.args["step"], one.args["layer"]] = one.start
    return found


DAY = 86_400_000_000_000


@pytest.mark.parametrize(
    ("second", "recorded", "clock"),
    [
        (Clock(5_000_000, recorded_ns=DAY + 5_000_000), DAY, RECORDED),
        (Clock(-70_000, recorded_ns=DAY - 70_000), DAY, RECORDED),
        (Clock(5_000_000, recorded_ns=DAY + 8_000_000), DAY, COLLECTIVES),
        (Clock(5_000_000, recorded_ns=None), DAY, COLLECTIVES),
        (Clock(5_000_000, recorded_ns=None), None, COLLECTIVES),
    ],
)
def test_two_reports_on_one_axis(second: Clock, recorded: int | None, clock: str, tmp_path: Path) -> None:
    """Kernels of both are where they truly were, to the few microseconds that collectives leave open; recorded clocks
    that are true are exact."""
    trace, done = traced(tmp_path, Run([[0], [1]], uneven, clocks=[Clock(0, recorded_ns=recorded), second]))
    assert done.axis.clock == clock
    fused = starts(trace, "fused")
    one = Run([[0, 1]], uneven)
    (tmp_path / "one").mkdir()
    true = starts(traced(tmp_path / "one", one)[0], "fused")
    moved = {key: fused[key] - true[key] for key in true}
    assert len({moved[key] for key in moved if key[0] == 0}) == 1
    origin = next(moved[key] for key in moved if key[0] == 0)
    off = max(abs(value - origin) for value in moved.values())
    assert off == 0 if clock == RECORDED else off < 5_000
    if recorded is not None:
        at, unix = trace.clocks[6], trace.clocks[1]
        # The true time 0 is the first report's, recorded as DAY.
        assert unix - at == recorded - origin
    else:
        assert trace.clocks == {}


def test_reports_that_share_nothing_and_have_no_clock(tmp_path: Path) -> None:
    run = Run([[0], [1]], uneven, clocks=[Clock(0, recorded_ns=None), Clock(0, recorded_ns=None)], tp_size=1,
              meta=lambda rank: {"ep_size": 1})  # fmt: skip
    trace, done = traced(tmp_path, run)
    assert done.axis.clock == NONE
    assert done.axis.offsets_ns == (0, 0)
    assert trace.clocks == {}


def test_times_before_zero_move_the_axis(tmp_path: Path) -> None:
    """An export whose times begin before its 0: this run's first step begins 1 ms before."""
    run = Run([[0, 1]], uneven, clocks=[Clock(2_000_000, recorded_ns=DAY)])
    (export,) = run.build()
    assert min(row["start"] for row in export.rows["CUPTI_ACTIVITY_KIND_KERNEL"]) == -999_000
    out = tmp_path / "out.pftrace"
    done = export_trace([export.save(tmp_path / "a.sqlite")], out)
    trace = read(out)
    assert done.axis.clock == OWN
    assert done.axis.offsets_ns == (999_990,)
    assert min(one.start for one in trace.slices) == 0
    assert trace.clocks == {6: 0, 1: DAY - 999_990}


def test_processes_of_one_number_are_told_apart(tmp_path: Path) -> None:
    """Two hosts may give two ranks one process id."""
    exports = Run([[0], [1]], uneven, clocks=[Clock(), Clock()]).build()
    for row in (row for rows in exports[1].rows.values() for row in rows):
        for column in ("globalTid", "globalPid"):
            if row.get(column) is not None:
                row[column] = (row[column] >> 48 << 48) | (100 << 24) | (100 if column == "globalTid" else 0)
        if "pid" in row:
            row["pid"] = 100
    paths = [export.save(tmp_path / f"{i}.sqlite") for i, export in enumerate(exports)]
    export_trace(paths, tmp_path / "out.pftrace")
    trace = read(tmp_path / "out.pftrace")
    processes = {t.process.process_name: t.process.pid for t in trace.tracks.values() if t.HasField("process")}
    assert processes == {"rank 0": 1, "rank 1": 2}
    for rank in (0, 1):
        assert len(trace.on(f"rank {rank}", "GPU layers")) == 3 * 2


def test_argument_columns_may_be_empty_or_null() -> None:
    frame = pl.DataFrame(
        {
            "start": [1, 5],
            "end": [4, 6],
            "name": ["a", "b"],
            "category": ["c", "c"],
            "text": [None, "said"],
            "nothing": pl.Series([None, None], dtype=pl.String),
            "yes": [True, None],
            "half": [0.5, None],
        }
    )
    events = lay(frame["start"].to_numpy(), frame["end"].to_numpy())[0]
    told = m.process(9, 1, "p", []) + m.track(7, 9, "t", 0) + b"".join(of_track(Slices(frame), 2, 7, events))
    packets = proto.Trace.FromString(told).packet
    begins = [p.track_event for p in packets if p.HasField("track_event") and p.track_event.type == m.BEGIN]
    kinds = [[one.WhichOneof("value") for one in event.debug_annotations] for event in begins]
    assert kinds == [["bool_value", "double_value"], ["string_value_iid"]]
