"""Marks of counts that changed after capture, by the checksum that they carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe.formats.checksum import broken
from nvtxmoe_analysis.events.table_decoders import Groups

#: Events whose marks may carry a checksum.
SEALED = (schema.COUNTS, schema.PHYSICAL)


@dataclass(frozen=True)
class Checksums:
    """Marks of counts, of logical and physical experts.

    Attributes:
        marks: binary ones and those in the word form.
        checked: those with a checksum.
        broken: those that differ from their checksum.
    """

    marks: int = 0
    checked: int = 0
    broken: int = 0


def whole_marks(groups: Mapping[str, Groups], words: pl.DataFrame) -> tuple[dict[str, Groups], Checksums]:
    """Return the payloads without marks that differ from their checksum: nothing in such a mark can be relied on.

    Parameters:
        groups: decoded binary payloads by event.
        words: payloads in the word form, which carry no checksum: ``name``.
    """
    marks = len(words.filter(pl.col("name").is_in(SEALED)))
    checked = wrong = 0
    checked_groups: dict[str, Groups] = dict(groups)
    for event in SEALED:
        checked_groups[event] = []
        for rows, array in groups[event]:
            marks += len(rows)
            bad = broken(array)
            if bad is not None:
                checked += len(rows)
                wrong += int(bad.sum())
            if bad is None or not bad.any():
                checked_groups[event].append((rows, array))
            elif not bad.all():
                good = np.flatnonzero(~bad)
                checked_groups[event].append((rows[good], array[good]))
    return checked_groups, Checksums(marks, checked, wrong)
