"""Groups of rows by an integer, without sorting them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.core.arrays import AnyInts, Ints

#: A table by key may be this many times larger than the rows, plus a constant.
SPARSE_FACTOR = 16
SPARSE_CONSTANT = 1 << 20
#: Integers up to here are exact in doubles.
MOST_EXACT = 1 << 53


def dense(key: Ints) -> tuple[Ints, Ints]:
    """Distinct keys in order, and the number of each row's key among them."""
    least, largest = int(key.min(initial=0)), int(key.max(initial=-1))
    if largest - least > SPARSE_FACTOR * len(key) + SPARSE_CONSTANT:
        numbers, index = np.unique(key, return_inverse=True)
        return numbers.astype(np.int64), index.astype(np.int64)
    place = key - least if least else key
    seen = np.zeros(largest - least + 1, dtype=np.bool_)
    seen[place] = True
    number = np.cumsum(seen) - 1
    return np.flatnonzero(seen) + least, number[place]


def in_order(*keys: npt.NDArray[np.generic], strictly: bool = False) -> bool:
    """Whether rows are sorted by keys, the first above all, and no two (``strictly``) have the same; where a key is not
    a number (NaN) they are not."""
    equal = np.ones(max(0, len(keys[0]) - 1), dtype=np.bool_)
    for key in keys:
        if not np.all((key[1:] >= key[:-1]) | ~equal):  # type: ignore[operator]
            return False
        equal &= key[1:] == key[:-1]
    return not (strictly and equal.any())


#: With so many keys, looking for each among all rows takes less than sorting them.
FEW_KEYS = 64


def order_within(key: Ints, *then: AnyInts) -> npt.NDArray[np.intp]:
    """Return ``np.lexsort`` of the key above all, then of the other columns, the first above the second.

    Exports list rows mostly in order of time: then bringing the rows of a key together is enough.
    """
    order = _together(key)
    if in_order(key[order], *(column[order] for column in then)):
        return order
    return np.lexsort((*reversed(then), key))


def _together(key: Ints) -> npt.NDArray[np.intp]:
    """Return ``np.argsort(key, kind="stable")``."""
    distinct = pl.Series(key).unique().sort().to_list()
    if not 0 < len(distinct) <= FEW_KEYS:
        return np.argsort(key, kind="stable")
    return np.concatenate([np.flatnonzero(key == value) for value in distinct])


def sums(index: Ints, values: Ints, groups: int) -> Ints:
    """Sum of the values of each group: int64 [groups], exact modulo 2^64."""
    largest = max(abs(int(values.min(initial=0))), int(values.max(initial=0)))
    if largest * len(values) < MOST_EXACT:  # what doubles, which numpy adds fast, hold exactly
        return np.bincount(index, values.astype(np.float64), minlength=groups).astype(np.int64)
    total = np.zeros(groups, dtype=np.int64)
    np.add.at(total, index, values)
    return total


#: Numbers that a packed key may have.
MOST_KEYS = 1 << 62


def codes(values: pl.Series) -> AnyInts:
    """Number of each text among the distinct ones, in order; -1 where null."""
    distinct = pl.Enum(values.unique().drop_nulls().sort())
    numbers: AnyInts = values.cast(distinct).to_physical().cast(pl.Int32).fill_null(-1).to_numpy()
    return numbers


def packed(columns: Sequence[AnyInts]) -> Ints:
    """One number from 0 for each combination of values, that rises in the order of the columns."""
    key = np.zeros(len(columns[0]), dtype=np.int64)
    size = 1
    for column in columns if len(key) else ():
        least, span = int(column.min()), int(column.max()) - int(column.min()) + 1
        if size * span > MOST_KEYS:
            column, span, least = _dense(column), len(column), 0  # noqa: PLW2901
            key, size = _dense(key), len(key)
        size *= span
        key *= span
        key += column
        key -= least
    return key


def narrowed(values: Ints) -> AnyInts:
    """In 32 bits where they fit."""
    fit = not len(values) or (values.min() >= _INT32.min and values.max() <= _INT32.max)
    return values.astype(np.int32) if fit else values


def runs(*columns: AnyInts) -> tuple[AnyInts, AnyInts]:
    """First position and length of every run of equal values."""
    if not len(columns[0]):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    fresh = np.ones(len(columns[0]), dtype=np.bool_)
    fresh[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    first = np.flatnonzero(fresh)
    return first, np.diff(np.append(first, len(fresh)))


_INT32 = np.iinfo(np.int32)


def _ints(values: pl.Series) -> AnyInts:
    """Integers, -1 where null."""
    return narrowed(values.cast(pl.Int64).fill_null(-1).to_numpy())


def _dense(values: AnyInts) -> Ints:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
