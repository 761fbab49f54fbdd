"""Decoded events of schema 1: ranges, metadata, steps, counts, sampled tokens, co-selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from nvtxmoe.errors import located
from nvtxmoe.formats import schema
from nvtxmoe_analysis.events.binary_payloads import Decoder
from nvtxmoe_analysis.events.capture_state import CaptureState
from nvtxmoe_analysis.events.checksums import Checksums, whole_marks
from nvtxmoe_analysis.events.journal_file import JournalFile
from nvtxmoe_analysis.events.meta import RECAPTURE, Meta, _meta
from nvtxmoe_analysis.events.nvtx import pid_of, push_pop, read_nvtx, read_payloads, step_ranges
from nvtxmoe_analysis.events.process_lives import Lives, lives_of
from nvtxmoe_analysis.events.table_decoders import Groups, count_table, pair_table, require, topk_table
from nvtxmoe_analysis.events.tables import CountTable, PairTable, TopkTable
from nvtxmoe_analysis.events.word_payloads import WordEvents, assemble, plausible
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: Events whose payload is binary, or words; without it they say nothing.
PAYLOAD_EVENTS = (schema.META, schema.STEP, schema.COUNTS, schema.PHYSICAL, schema.TOPK, schema.PAIRS)
#: Columns of ``Events.ranges``.
RANGES = {
    **dict.fromkeys(("row", "pid", "globalTid", "start", "end"), pl.Int64),
    "name": pl.String,
    "int64Value": pl.Int64,
}


@dataclass(frozen=True)
class Events:
    """Everything capture wrote into one export, or into the journals of one session.

    Attributes:
        ranges: push/pop ranges: ``row``, ``pid``, ``globalTid``, ``start``, ``end`` (ns, null when it was still
            open at the end of the capture), ``name``, ``int64Value``.
        metas: by process id.
        steps: one row a ``moe.step``: ``row``, ``pid``, ``globalTid``, ``start``, ``end``, ``step``, ``rank``,
            ``num_tokens``, ``num_reqs``, ``prefill_tokens``, ``decode_tokens`` (null without a payload).
        problems: counts of what could not be read, by name.
        encoding: ``binary``, ``words``, ``journal``, or ``none``.
        journals: the files of a session of direct mode, by the ``pid`` of their rows; else empty.
        all_metas: (when it was set, content) of every moe.meta mark, in the order of time.
        lives: process ids that were used again; ``pid`` tells the processes apart everywhere here.
        checksums: marks of counts whose checksum was compared.
        damaged: payloads that could not be read, each with its event, time and what is wrong; the others were read.
    """

    ranges: pl.DataFrame
    metas: dict[int, Meta]
    steps: pl.DataFrame
    counts: CountTable
    physical: CountTable
    topk: TopkTable
    pairs: PairTable
    problems: dict[str, int]
    encoding: str
    journals: Mapping[int, JournalFile] = field(default_factory=dict)
    all_metas: Sequence[tuple[int, Meta]] = ()
    lives: Lives = field(default_factory=Lives)
    checksums: Checksums = field(default_factory=Checksums)
    damaged: Sequence[str] = ()

    def capture_states(self) -> dict[int, CaptureState]:
        """What each process said of its own capture, in moe.meta and, later, at the end of its journal."""
        states = {pid: meta.capture for pid, meta in self.metas.items()}
        for pid, file in self.journals.items():
            states[pid] = replace(states.get(pid, CaptureState()).then(file.last_words), ended=file.ended)
        return states


def read_events(export: Export) -> Events:
    """Read and decode the export's nvtxmoe events.

    Raises:
        NvtxmoeError: no such events, a damaged payload, or a schema number this version does not know.
    """
    return decode_events(export, read_nvtx(export))


def decode_events(export: Export, nvtx: pl.DataFrame) -> Events:
    """Read the payloads of the rows of ``read_nvtx`` and decode them; raises as :func:`read_events`.

    Where a process id was used again, ``pid`` tells the processes apart (``process_lives``).
    """
    events = _decode_with_lives(export, nvtx, Lives())
    lives = lives_of(events.all_metas)
    return _decode_with_lives(export, nvtx, lives) if lives else events


def _decode_with_lives(export: Export, nvtx: pl.DataFrame, lives: Lives) -> Events:
    steps = lives.with_life(step_ranges(nvtx))  # in the order of the rows' own processes, as attribution numbers them
    nvtx = lives.with_life(nvtx)
    blobs = read_payloads(export, nvtx)
    is_word = (pl.col("eventType") == nsys_tables.NVTX_MARK) & pl.col("name").str.starts_with(schema.WORD_PREFIX)
    words = plausible(assemble(nvtx.filter(is_word)))
    decoder = Decoder(export, skips=True)
    binary = blobs.filter(pl.col("name").is_in(PAYLOAD_EVENTS))
    groups = {name: list(decoder.groups(binary.filter(pl.col("name") == name))) for name in PAYLOAD_EVENTS}
    if decoder.first_error is not None and not any(groups.values()) and words.events.is_empty():
        raise decoder.first_error  # none can be read: it is the export, not a mark
    spelled = lives.with_life(words.events.with_columns(pid=pid_of("globalTid")))
    events = decode(export.source, groups, spelled, steps)
    return replace(
        events,
        lives=lives,
        damaged=[f"{row['name']} at {row['start']} ns: {row['what']}" for row in decoder.damaged],
        ranges=push_pop(nvtx).select("row", "pid", "globalTid", "start", "end", "name", "int64Value"),
        problems=_problems(
            nvtx, blobs, words, events.steps, sum(row["name"] == schema.STEP for row in decoder.damaged)
        ),
        encoding="words" if len(words.events) else "binary" if len(binary) else "none",
    )


def decode(
    source: Path, groups: Mapping[str, Groups], spelled: pl.DataFrame, steps: pl.DataFrame, *, padded: bool = True
) -> Events:
    """Decode payloads, however they came.

    Parameters:
        source: what to name in errors.
        groups: by event, payloads that are arrays already, with their ``row``, ``pid`` and ``start``.
        spelled: ``row``, ``pid``, ``start``, ``name`` and ``blob`` of payloads whose layout only schema 1 tells.
        steps: the moe.step ranges: ``row``, ``pid``, ``globalTid``, ``start``, ``end``, ``int64Value``.
        padded: whether spelled payloads are padded to whole words.
    """
    words = {name: spelled.filter(pl.col("name") == name) for name in PAYLOAD_EVENTS}
    marks = _metas(source, groups[schema.META], words[schema.META])
    groups, checksums = whole_marks(groups, spelled)
    metas = {meta.pid: meta for _, meta in marks}  # sent again by sessions that start late: the last one counts

    def counted(name: str) -> CountTable:
        number = _slots(metas) if name == schema.PHYSICAL else _experts(metas)
        return count_table(name, groups[name], words[name], number)

    with located(source, RECAPTURE):
        counts, physical = counted(schema.COUNTS), counted(schema.PHYSICAL)
        top_k = {**counts.top_k_by_layer(), **_top_k(metas)}
        return Events(
            ranges=pl.DataFrame(schema=RANGES),
            metas=metas,
            steps=_steps(steps, groups[schema.STEP], words[schema.STEP]),
            counts=counts,
            physical=physical,
            topk=topk_table(groups[schema.TOPK], words[schema.TOPK], top_k, padded=padded),
            pairs=pair_table(groups[schema.PAIRS], words[schema.PAIRS], _experts(metas)),
            problems=dict.fromkeys(("blobs_missing", "words_truncated", "words_damaged", "start_end_steps"), 0),
            encoding="none",
            all_metas=marks,
            checksums=checksums,
        )


def _experts(metas: dict[int, Meta]) -> dict[tuple[int, int], int]:
    return {(pid, n): layer.num_experts for pid, meta in metas.items() for n, layer in meta.layers.items()}


def _slots(metas: dict[int, Meta]) -> dict[tuple[int, int], int]:
    """Physical experts, of layers that have another number of them than of logical ones."""
    layers = ((pid, number, layer) for pid, meta in metas.items() for number, layer in meta.layers.items())
    return {(pid, number): layer.num_physical or layer.num_experts for pid, number, layer in layers}


def _top_k(metas: dict[int, Meta]) -> dict[tuple[int, int], int]:
    return {(pid, n): layer.top_k for pid, meta in metas.items() for n, layer in meta.layers.items()}


def _problems(
    nvtx: pl.DataFrame, blobs: pl.DataFrame, words: WordEvents, steps: pl.DataFrame, damaged_steps: int
) -> dict[str, int]:
    expect = nvtx.filter(pl.col("name").is_in([n for n in PAYLOAD_EVENTS if n != schema.STEP]))
    bare = expect.join(blobs.select("row"), on="row", how="anti")
    return {
        "start_end_steps": len(
            nvtx.filter(pl.col("name") == schema.STEP, pl.col("eventType") == nsys_tables.NVTX_START_END)
        ),
        "blobs_missing": len(bare) + max(0, steps["num_tokens"].null_count() - damaged_steps),
        "words_truncated": words.truncated,
        "words_damaged": words.damaged,
    }


def _metas(source: Path, groups: Groups, words: pl.DataFrame) -> list[tuple[int, Meta]]:
    """Every mark and when it was set, in the order of time."""
    texts: list[tuple[int, int, bytes]] = []
    for rows, arrays in groups:
        for pid, start, array in zip(rows["pid"].to_list(), rows["start"].to_list(), arrays, strict=True):
            texts.append((start, pid, array.tobytes()))
    for pid, start, blob in words.select("pid", "start", "blob").iter_rows():
        texts.append((start, pid, blob))
    return [(at, replace(_meta(source, pid, text.rstrip(b"\0")), marked_ns=at)) for at, pid, text in sorted(texts)]


_STEP_FIELDS = ("step", "rank", "num_tokens", "num_reqs", "prefill_tokens", "decode_tokens")


def _steps(ranges: pl.DataFrame, groups: Groups, words: pl.DataFrame) -> pl.DataFrame:
    steps = ranges.select("row", "pid", "globalTid", "start", "end", "int64Value")
    wide = dict.fromkeys(_STEP_FIELDS, pl.Int64)
    binary = [pl.DataFrame(schema={"row": pl.Int64, **wide})]
    for rows, array in groups:
        require(array, _STEP_FIELDS, (), schema.STEP)
        binary.append(pl.DataFrame({"row": rows["row"], **{f: array[f].astype(np.int64) for f in _STEP_FIELDS}}))
    spelled = np.frombuffer(b"".join(words["blob"].to_list()), dtype=schema.STEP_DTYPE)
    word_frame = pl.DataFrame(
        {"pid": words["pid"], **{f: spelled[f].astype(np.int64) for f in _STEP_FIELDS}},
        schema={"pid": pl.Int64, **wide},
    ).unique(["pid", "step"], keep="first")
    by_row = steps.join(pl.concat(binary), on="row", how="left", maintain_order="left")
    # In the word form the range carries the step number and a mark inside it the struct.
    by_number = by_row.with_columns(step=pl.coalesce("step", "int64Value")).join(
        word_frame, on=["pid", "step"], how="left", suffix="_words", maintain_order="left"
    )
    return by_number.select(
        "row",
        "pid",
        "globalTid",
        "start",
        "end",
        "step",
        *(pl.coalesce(f, f"{f}_words").alias(f) for f in _STEP_FIELDS if f != "step"),
    )
