"""What direct mode wrote, read back for comparison."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema
from nvtxmoe.formats.journal import EVENTS, RANKS, SUFFIX, Journal

_RECORD = struct.Struct("<IIq")


def records_of_journal(journal: Journal) -> Iterator[tuple[str, int, bytes]]:
    """Yield (event, unix time in ns, payload) record by record, as the format is described; sets ``journal.ended``.

    Raises:
        NvtxmoeError: no journal, or one that is damaged before its end.
    """
    for at, raw in journal._blocks():
        place = 0
        while place < len(raw):
            if place + _RECORD.size > len(raw):
                raise journal._damaged(at)
            code, size_bytes, time_ns = _RECORD.unpack_from(raw, place)
            place += _RECORD.size
            if code >= len(EVENTS) or place + size_bytes > len(raw):
                raise journal._damaged(at)
            payload = raw[place : place + size_bytes]
            place += size_bytes
            if EVENTS[code] == "end":
                journal.ended = payload
            else:
                journal.ended = None  # it went on
                yield EVENTS[code], time_ns, payload


@dataclass
class Captured:
    """One rank's journal.

    Attributes:
        meta: the last moe.meta.
        steps: payloads of moe.step, in order.
        counts, physical: by (step, layer).
        topk: rows of moe.topk by (step, layer).
        pairs: payloads of moe.pairs, in order.
        events: how often each event was written.
        end: what the process said when it ended; None when it was killed.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    steps: list[Any] = field(default_factory=list)
    counts: dict[tuple[int, int], Any] = field(default_factory=dict)
    physical: dict[tuple[int, int], Any] = field(default_factory=dict)
    topk: dict[tuple[int, int], Any] = field(default_factory=dict)
    pairs: list[Any] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)
    end: dict[str, Any] | None = None


def sessions(base: Path) -> list[Path]:
    """Session folders under a base folder."""
    return sorted(base.glob("session_*")) if base.is_dir() else []


def only_session(base: Path) -> Path:
    """The one session under a base folder."""
    found = sessions(base)
    assert len(found) == 1, found
    return found[0]


def read_rank(path: Path) -> Captured:
    """A journal. A second payload for one (step, layer) is an error: something counted twice."""
    journal, read = Journal(path), Captured()
    for event, _, payload in records_of_journal(journal):
        read.events[event] = read.events.get(event, 0) + 1
        if event == "meta":
            read.meta = json.loads(payload)
        elif event == "step":
            read.steps.append(np.frombuffer(payload, schema.STEP_DTYPE)[0])
        elif event == "pairs":
            experts = {layer["layer"]: layer["num_experts"] for layer in read.meta["layers"]}
            (layer,) = np.frombuffer(payload, "<i4", 1, 16)
            read.pairs.append(np.frombuffer(payload, schema.pairs_dtype(experts[int(layer)]))[0])
        else:
            _keep(read, event, payload)
    assert not journal.truncated
    read.end = None if journal.ended is None else json.loads(journal.ended)
    return read


def _keep(read: Captured, event: str, payload: bytes) -> None:
    if event == "topk":
        top_k = {layer["layer"]: layer["top_k"] for layer in read.meta["layers"]}
        (layer,) = np.frombuffer(payload, "<i4", 1, 8)
        rows = np.frombuffer(payload, schema.topk_dtype(top_k[int(layer)]))
        key, value = (int(rows[0]["step"]), int(layer)), rows
        assert len({(int(row["step"]), int(row["layer"])) for row in rows}) == 1
    else:
        num_experts = (len(payload) - schema.counts_dtype(0).itemsize) // 4
        row = np.frombuffer(payload, schema.counts_dtype(num_experts))[0]
        key, value = (int(row["step"]), int(row["layer"])), row
    place: dict[tuple[int, int], Any] = getattr(read, event)
    assert key not in place, f"two moe.{event} for step and layer {key}"
    place[key] = value


def read_session(session: Path) -> dict[int, Captured]:
    """All journals of a session by rank, which must be unique."""
    ranks: dict[int, Captured] = {}
    for path in sorted((session / RANKS).glob(f"*{SUFFIX}")):
        read = read_rank(path)
        rank = read.meta["rank"]
        assert path.name.startswith(f"rank{rank}-")
        assert rank not in ranks, f"two journals of rank {rank}"
        ranks[rank] = read
    return ranks
