"""Many features of many layers are tried: which claims stand."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats


def claims(p_values: Floats, level: float) -> Bools:
    """Which hypotheses are claimed, [groups, hypotheses]; a NaN was not tested.

    Groups are selected by the procedure of Benjamini and Hochberg (1995) on their smallest p-value times the number
    of tests in the group; within a selected group, Holm's procedure (1979) at ``level`` x selected / groups (Benjamini
    and Bogomolov, "Selective inference on multiple families of hypotheses", 2014). When nothing has an effect, the
    chance of any claim is at most ``level``; otherwise of all groups with claims, at most that share has a false one
    on average, where groups are independent or alike.
    """
    adjusted = holm(p_values)
    best = np.nanmin(np.where(np.isnan(adjusted), np.inf, adjusted), axis=1, initial=np.inf)
    tested = np.isfinite(best)
    groups = int(tested.sum())
    ordered = np.sort(best[tested])
    passing = np.flatnonzero(ordered <= level * np.arange(1, groups + 1) / max(groups, 1))
    selected = int(passing[-1]) + 1 if len(passing) else 0
    limit = level * selected / max(groups, 1)
    return np.nan_to_num(adjusted, nan=np.inf) <= limit if selected else np.zeros(p_values.shape, dtype=np.bool_)


def holm(p_values: Floats) -> Floats:
    """Return p-values adjusted for the number of tests along the last axis (S. Holm, "A simple sequentially rejective
    multiple test procedure", Scand. J. Stat. 6, 1979). If only those below alpha are claimed, any of them is false with
    probability alpha at most, however the tests depend on each other. NaN was not tested: it stays and does not count.
    """
    order = np.argsort(p_values, axis=-1)  # NaN last
    ordered = np.take_along_axis(p_values, order, axis=-1)
    number = (~np.isnan(p_values)).sum(axis=-1, keepdims=True)
    scaled = np.minimum(1.0, ordered * (number - np.arange(p_values.shape[-1])))
    rising = np.maximum.accumulate(np.where(np.isnan(scaled), -np.inf, scaled), axis=-1)
    out = np.full(p_values.shape, np.nan)
    np.put_along_axis(out, order, np.where(np.isnan(ordered), np.nan, rising), axis=-1)
    return out
