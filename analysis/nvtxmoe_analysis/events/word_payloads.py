"""Reading the word form of schema 1 back into payload bytes (its encoder is nvtxmoe.formats.word_payloads)."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe.formats.schema import WORD_PREFIX


@dataclass(frozen=True)
class WordEvents:
    """Payloads put together again.

    Attributes:
        events: ``row`` of the first mark, ``globalTid``, ``start``, ``name`` (``moe.counts``...), ``blob`` (bytes,
            padded with zeros to a multiple of eight).
        truncated: payloads whose last words are missing because the capture ended.
        damaged: payloads broken off by another message, or that say an impossible length.
    """

    events: pl.DataFrame
    truncated: int
    damaged: int


SCHEMA = {"row": pl.Int64, "globalTid": pl.Int64, "start": pl.Int64, "name": pl.String, "blob": pl.Binary}


def assemble(marks: pl.DataFrame) -> WordEvents:
    """Assemble word marks into payloads.

    Parameters:
        marks: ``row``, ``globalTid``, ``start`` (ns), ``name`` (``moe.w.*``), ``int64Value``.
    """
    out: list[tuple[int, int, int, str, bytes]] = []
    truncated = damaged = 0
    for (tid,), thread in marks.sort("globalTid", "start", "row").group_by("globalTid", maintain_order=True):
        words = thread["int64Value"].fill_null(-1).to_numpy().astype("<i8")
        names = thread["name"].to_list()
        rows, starts = thread["row"].to_list(), thread["start"].to_list()
        run_ends = _run_ends(thread["name"])
        at = 0
        while at < len(words):
            length, end = int(words[at]), run_ends[at]
            stop = at + 1 + length
            if length < 0 or stop > end:
                # A new message begins before the payload is whole: lost marks, or the end of the capture.
                if end == len(words):
                    truncated += 1
                else:
                    damaged += 1
                at = end
                continue
            name = "moe." + names[at].removeprefix(WORD_PREFIX)
            out.append((rows[at], int(str(tid)), starts[at], name, words[at + 1 : stop].tobytes()))
            at = stop
    return WordEvents(pl.DataFrame(out, schema=SCHEMA, orient="row"), truncated, damaged)


def _run_ends(names: pl.Series) -> list[int]:
    """For each mark, the index after the last one of its run of equal messages."""
    runs = names.rle_id()
    last = pl.DataFrame({"run": runs}).with_row_index("i").group_by("run").agg(pl.col("i").max() + 1)
    ends = pl.DataFrame({"run": runs}).join(last, on="run", how="left", maintain_order="left")["i"]
    return ends.to_list()


#: Bytes that a payload of each event has at least.
HEAD_BYTES = {
    schema.STEP: schema.STEP_DTYPE.itemsize,
    schema.COUNTS: schema.counts_dtype(0).itemsize,
    schema.PHYSICAL: schema.counts_dtype(0).itemsize,
    schema.PAIRS: schema.pairs_dtype(0).itemsize,
}


def plausible(words: WordEvents) -> WordEvents:
    """Without payloads that can't be what they say: too short, or a step of another size. They count as damaged.

    Marks lost in the middle of a run of equal messages leave no other trace: the next payload's words are taken
    for this one's.
    """
    size_bytes = pl.col("blob").bin.size()
    head = pl.col("name").replace_strict(HEAD_BYTES, default=0, return_dtype=pl.UInt32)
    good = words.events.filter((size_bytes == head) | ((size_bytes > head) & (pl.col("name") != schema.STEP)))
    return WordEvents(good, words.truncated, words.damaged + len(words.events) - len(good))
