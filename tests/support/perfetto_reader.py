"""Reading a trace back with Perfetto's own protobuf classes, as its trace processor would, and checking that it may."""

from __future__ import annotations

import gzip
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

#: InternedData's fields by what refers to them.
INTERNED = ("event_categories", "event_names", "debug_annotation_names", "debug_annotation_string_values")


@dataclass
class Slice:
    """A slice: times in ns, depth below its track, arguments as they are in the trace."""

    track: int
    start: int
    name: str
    category: str
    args: dict[str, Any]
    depth: int
    end: int = -1


@dataclass
class Trace:
    """What a trace shows.

    Attributes:
        tracks: descriptors by uuid.
        slices: in the order of their begins.
        counters: (time, value) by track.
        clocks: of the clock snapshot, by id.
    """

    tracks: dict[int, Any] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    counters: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    clocks: dict[int, int] = field(default_factory=dict)

    def path(self, uuid: int) -> tuple[str, ...]:
        """Names from the process down to a track."""
        track = self.tracks[uuid]
        if track.HasField("process"):
            return (track.process.process_name,)
        return (*self.path(track.parent_uuid), track.name)

    def on(self, *path: str) -> list[Slice]:
        """Slices of the tracks at a path; a name may end in ``*``."""
        return [one for one in self.slices if _fits(self.path(one.track), path)]

    def named(self, *path: str) -> list[int]:
        """The tracks at a path."""
        return [uuid for uuid in self.tracks if _fits(self.path(uuid), path)]


def _fits(path: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return len(path) == len(wanted) and all(
        name.startswith(want[:-1]) if want.endswith("*") else name == want
        for name, want in zip(path, wanted, strict=True)
    )


def read(path: Path) -> Trace:
    """Read a trace; every rule of the format that is broken fails an assertion."""
    data = path.read_bytes()
    whole = proto.Trace.FromString(gzip.decompress(data) if path.suffix == ".gz" else data)
    assert_known(whole)
    trace = Trace()
    states: dict[int, dict[str, dict[int, Any]]] = {}
    defaults: dict[int, int] = {}
    last: dict[int, int] = {}
    events: list[tuple[int, int, Any]] = []
    for packet in whole.packet:
        sequence = packet.trusted_packet_sequence_id
        assert sequence > 0
        if packet.HasField("track_descriptor"):
            _add_track(trace, packet.track_descriptor)
        if packet.HasField("clock_snapshot"):
            trace.clocks = {clock.clock_id: clock.timestamp for clock in packet.clock_snapshot.clocks}
        if packet.sequence_flags & 1:  # incremental state cleared
            assert sequence not in states and packet.first_packet_on_sequence
            states[sequence] = {}
            defaults[sequence] = packet.trace_packet_defaults.track_event_defaults.track_uuid
        if packet.HasField("interned_data"):
            for kind in INTERNED:
                entries = getattr(packet.interned_data, kind)
                states[sequence][kind] = {e.iid: e.str.decode() if hasattr(e, "str") else e.name for e in entries}
                assert len(states[sequence][kind]) == len(entries) and 0 not in states[sequence][kind]
        if packet.HasField("track_event"):
            assert packet.sequence_flags == 2 and sequence in states
            assert packet.timestamp >= last.get(sequence, 0), "time goes back on a sequence"
            last[sequence] = packet.timestamp
            uuid = packet.track_event.track_uuid or defaults[sequence]
            assert uuid in trace.tracks, "an event before its track"
            events.append((packet.timestamp, uuid, (packet.track_event, states[sequence])))
    _play(trace, sorted(events, key=lambda one: one[0]))
    return trace


def _add_track(trace: Trace, track: Any) -> None:
    assert track.uuid and track.uuid not in trace.tracks
    assert track.HasField("process") or track.parent_uuid in trace.tracks
    trace.tracks[track.uuid] = track


def _play(trace: Trace, events: list[tuple[int, int, Any]]) -> None:
    """Put begins and ends together, in time order and at one time in the file's, as the trace processor does."""
    stacks: dict[int, list[Slice]] = defaultdict(list)
    for time, uuid, (event, state) in events:
        stack = stacks[uuid]
        if event.type == event.TYPE_SLICE_BEGIN:
            name, (category,) = state["event_names"][event.name_iid], event.category_iids
            assert name
            slice_ = Slice(uuid, time, name, state["event_categories"][category], _args(event, state), len(stack))
            stack.append(slice_)
            trace.slices.append(slice_)
        elif event.type == event.TYPE_SLICE_END:
            assert stack, "an end without a begin"
            slice_ = stack.pop()
            slice_.end = time
        else:
            assert event.type == event.TYPE_COUNTER and trace.tracks[uuid].HasField("counter")
            assert event.HasField("counter_value") != event.HasField("double_counter_value")
            trace.counters[uuid].append(
                (time, event.counter_value if event.HasField("counter_value") else event.double_counter_value)
            )
    assert not any(stacks.values()), "a slice that does not end"


def _args(event: Any, state: dict[str, dict[int, Any]]) -> dict[str, Any]:
    args = {}
    for one in event.debug_annotations:
        kind = one.WhichOneof("value")
        value = getattr(one, kind)
        args[state["debug_annotation_names"][one.name_iid]] = (
            state["debug_annotation_string_values"][value] if kind == "string_value_iid" else value
        )
    assert len(args) == len(event.debug_annotations)
    return args


def assert_known(message: Message) -> None:
    """Assert that Perfetto's schema has every field of a message, and of those in it, with these types."""
    assert len(UnknownFieldSet(message)) == 0, f"fields that {message.DESCRIPTOR.full_name} does not have"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if not isinstance(value, Message) else [value]:
                assert_known(inner)
