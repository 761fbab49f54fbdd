"""The last row of a key at or before a time, for keys and times of any 64 bits."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Ints


def latest(keys: Ints, times: Ints, asked_keys: Ints, asked_times: Ints) -> Ints:
    """Position of the last row whose key is the asked one and whose time is not after the asked time, -1 if none.

    Of rows with one key and one time the last row counts. Keys and times are compared, never packed into one number.

    Parameters:
        keys, times: int64 [rows].
        asked_keys, asked_times: int64 [questions].

    Returns:
        int64 [questions].
    """
    rows = len(keys)
    key, time = np.concatenate([keys, asked_keys]), np.concatenate([times, asked_times])
    asks = np.arange(len(key)) >= rows
    order = np.lexsort((asks, time, key))
    place = np.maximum.accumulate(np.where(asks[order], -1, np.arange(len(order))))
    row = np.where(place >= 0, order[place], -1)
    row[(row >= 0) & (key[row] != key[order])] = -1
    latest_rows = np.empty(len(key), dtype=np.int64)
    latest_rows[order] = row
    return latest_rows[rows:]
