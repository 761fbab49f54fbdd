"""The checksum in a mark of counts: it tells whether anything in the mark changed after capture.

Every row has it as its last field, ``checksum``: the CRC-32 of all rows of the mark, with zeros in its place.
The journal and the word form do not carry it: a journal's blocks have checksums of their own.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.formats.schema import counts_dtype

FIELD = "checksum"
FIELD_BYTES = 4


def sealed_dtype(num_experts: int) -> np.dtype[np.void]:
    """Return one element of ``moe.counts`` and ``moe.physical`` with room for the checksum."""
    return np.dtype([*counts_dtype(num_experts).descr, (FIELD, "<u4")])


def seal(rows: Any) -> None:
    """Write the checksum into rows of ``sealed_dtype``; rows without that field stay as they are."""
    if FIELD in rows.dtype.names:
        field = rows[FIELD]
        field.fill(0)
        field.fill(zlib.crc32(rows))


@lru_cache(maxsize=64)
def payload_dtype(rows_dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    """Return one row without its checksum as plain bytes, of type ``V<bytes>``."""
    return np.dtype(f"V{rows_dtype.itemsize - (FIELD_BYTES if FIELD in (rows_dtype.names or ()) else 0)}")


def without_checksum(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the rows as plain bytes without the checksum: a view of a contiguous array."""
    rows = np.ascontiguousarray(rows)
    plain: npt.NDArray[np.void] = np.ndarray(rows.shape, payload_dtype(rows.dtype), rows, strides=rows.strides)
    return plain


def broken(marks: npt.NDArray[np.void]) -> npt.NDArray[np.bool_] | None:
    """Return which marks differ from their checksum: bool [marks]; None if the marks have no checksum.

    Parameters:
        marks: [marks, rows] as they were decoded, with whatever layout the capture describes.
    """
    names = marks.dtype.names or ()
    if marks.ndim != 2 or FIELD not in names or "counts" not in names:
        return None
    if marks.dtype != sealed_dtype(math.prod(marks.dtype["counts"].shape)):  # not a layout that capture writes
        return np.ones(len(marks), np.bool_)
    is_broken = np.zeros(len(marks), np.bool_)
    for at, rows in enumerate(marks):
        unsealed = rows.copy()
        unsealed[FIELD] = 0
        is_broken[at] = bool((rows[FIELD] != zlib.crc32(unsealed)).any())
    return is_broken
