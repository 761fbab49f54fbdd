"""Step numbers of the marks that carry payloads: counts, sampled tokens and pairs."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe.formats.word_payloads import WORD_BYTES
from nvtxmoe_analysis.events.binary_payloads import Decoder
from nvtxmoe_analysis.events.nvtx import read_payloads
from nvtxmoe_analysis.events.word_payloads import assemble
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: Fields that hold the first and the last step of an event's payload. ``moe.step`` itself is a range.
FIELDS = {
    **dict.fromkeys((schema.COUNTS, schema.PHYSICAL, schema.TOPK), ("step", "step")),
    schema.PAIRS: ("first_step", "last_step"),
}
SCHEMA = {"row": pl.Int64, "first": pl.Int64, "last": pl.Int64}


def mark_steps(export: Export, nvtx: pl.DataFrame) -> pl.DataFrame:
    """Return which steps the payloads are of: ``row``, ``first`` and ``last`` (step numbers, both inclusive).

    In the word form each mark of a payload has a row. Payloads that cannot be decoded have none.

    Parameters:
        nvtx: see ``read_nvtx``.
    """
    parts = [pl.DataFrame(schema=SCHEMA), _of_words(nvtx)]
    if export.has_blob_column():
        blobs = read_payloads(export, nvtx)
        decoder = Decoder(export, skips=True)
        for name, (first, last) in FIELDS.items():
            for rows, array in decoder.groups(blobs.filter(name=name)):
                if not array.size or not {first, last} <= set(array.dtype.names or ()):
                    continue
                low, high = (array[field].astype(np.int64).reshape(len(rows), -1) for field in (first, last))
                parts.append(pl.DataFrame({"row": rows["row"], "first": low.min(axis=1), "last": high.max(axis=1)}))
    return pl.concat(parts)


def _of_words(nvtx: pl.DataFrame) -> pl.DataFrame:
    is_word = (pl.col("eventType") == nsys_tables.NVTX_MARK) & pl.col("name").str.starts_with(schema.WORD_PREFIX)
    marks = nvtx.filter(is_word).sort("globalTid", "start", "row")  # the order in which they were put together
    rows = marks["row"].to_list()
    position = {row: at for at, row in enumerate(rows)}
    steps_of_rows: list[tuple[int, int, int]] = []
    for row, name, blob in assemble(marks).events.select("row", "name", "blob").iter_rows():
        if name not in FIELDS and name != schema.STEP:
            continue
        head = np.frombuffer(blob[: 2 * WORD_BYTES], "<i8").tolist()
        if not head or (name == schema.PAIRS and len(head) < 2):
            continue
        first, last = head[0], head[1] if name == schema.PAIRS else head[0]
        begin = position[row]
        steps_of_rows += [(part, first, last) for part in rows[begin : begin + 1 + len(blob) // WORD_BYTES]]
    return pl.DataFrame(steps_of_rows, schema=SCHEMA, orient="row")
