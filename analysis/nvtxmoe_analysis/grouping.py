"""Groups of rows by an integer, without sorting them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: A table by key may be this many times larger than the rows, plus a constant.
SPARSE_FACTOR = 16
SPARSE_CONSTANT = 1 << 20


def dense(key: Ints) -> tuple[Ints, Ints]:
    """Distinct keys in order, and the number of each row's key among them."""
    least, most = int(key.min(initial=0)), int(key.max(initial=-1))
    if most - least > SPARSE_FACTOR * len(key) + SPARSE_CONSTANT:
        numbers, index = np.unique(key, return_inverse=True)
        return numbers.astype(np.int64), index.astype(np.int64)
    place = key - least if least else key
    seen = np.zeros(most - least + 1, dtype=np.bool_)
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


def sums(index: Ints, values: Ints, groups: int) -> Ints:
    """Sum of the values of each group: int64 [groups]. Exact below 2^53, in the doubles that numpy adds."""
    with np.errstate(invalid="ignore"):  # times of a damaged file need not add up to 64 bits
        return np.bincount(index, values.astype(np.float64), minlength=groups).astype(np.int64)
