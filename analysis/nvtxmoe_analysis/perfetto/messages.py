"""The few messages of a Perfetto trace that are written here, as perfetto's protos/perfetto/trace number their fields.

Of version 59; fields keep their numbers. Every track has a sequence of packets of its own, with its own interned names
and in time order; a sequence's first packet tells the names, and the track that its events are on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nvtxmoe_analysis.perfetto.protobuf_columns import block, number

# Trace, TracePacket
PACKET = 1
TIMESTAMP, SEQUENCE, FLAGS, TRACK_EVENT = 8, 10, 13, 11
_CLOCK_SNAPSHOT, _INTERNED, _DEFAULTS, _TRACK, _FIRST_ON_SEQUENCE = 6, 12, 59, 60, 87
STATE_CLEARED, NEEDS_STATE = 1, 2
# TrackEvent
TYPE, CATEGORY, NAME, ANNOTATION, TRACK, COUNTER, DOUBLE_COUNTER = 9, 3, 10, 4, 11, 30, 44
BEGIN, END, COUNTED = 1, 2, 4
# DebugAnnotation
ARGUMENT_NAME, ARGUMENT_BOOL, ARGUMENT_INT, ARGUMENT_DOUBLE, ARGUMENT_TEXT = 1, 2, 4, 5, 17
# InternedData
CATEGORIES, NAMES, ARGUMENT_NAMES, TEXTS = 1, 2, 3, 29
# Builtin clocks
_REALTIME, _BOOTTIME = 1, 6
# ChildTracksOrdering
_EXPLICIT = 3


def packet(content: bytes) -> bytes:
    """A packet as the trace holds it."""
    return block(PACKET, content)


def _track(content: bytes) -> bytes:
    # Descriptors stand on a sequence of their own.
    return packet(number(SEQUENCE, 1) + block(_TRACK, content))


def process(uuid: int, pid: int, name: str, labels: Iterable[str]) -> bytes:
    """The track of a process: its children come in the order in which their ranks say."""
    labelled = b"".join(block(8, label) for label in labels)
    process_fields = number(1, pid) + block(6, name) + labelled
    return _track(number(1, uuid) + block(3, process_fields) + number(11, _EXPLICIT))


def track(uuid: int, parent: int, name: str, order: int, description: str = "") -> bytes:
    """A track of slices, or of other tracks. Those of one name and parent are shown as one."""
    description_field = block(14, description) if description else b""
    return _track(
        number(1, uuid)
        + number(5, parent)
        + block(2, name)
        + number(11, _EXPLICIT)
        + number(12, order)
        + description_field
    )


def counter(uuid: int, parent: int, name: str, order: int, unit: str) -> bytes:
    """A track of a counter."""
    fields = number(1, uuid) + number(5, parent) + block(2, name) + number(12, order) + block(8, block(6, unit))
    return _track(fields)


def clock(time_ns: int, unix_ns: int) -> bytes:
    """What the trace's clock and unix time show at one moment."""
    shown = ((_BOOTTIME, time_ns), (_REALTIME, unix_ns))
    clocks = b"".join(block(1, number(1, ident) + number(2, at)) for ident, at in shown)
    return packet(number(SEQUENCE, 1) + block(_CLOCK_SNAPSHOT, clocks + number(2, _BOOTTIME)))


def sequence_start(sequence: int, interned: Mapping[int, Sequence[str]], uuid: int | None = None) -> bytes:
    """The first packet of a sequence.

    Parameters:
        interned: texts by field of InternedData; the first of each has the id 1.
        uuid: the track that events without one are on.
    """
    texts = b"".join(
        block(field, number(1, ident) + block(2, text))
        for field, of_field in interned.items()
        for ident, text in enumerate(of_field, start=1)
    )
    content = number(SEQUENCE, sequence) + number(FLAGS, STATE_CLEARED) + number(_FIRST_ON_SEQUENCE, 1)
    content += block(_INTERNED, texts)
    if uuid is not None:
        content += block(_DEFAULTS, block(11, number(TRACK, uuid)))
    return packet(content)
