"""Student's t distribution in numpy: importing scipy.special costs more than all models take."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Floats

#: Terms of the continued fraction; it converges in far fewer for degrees of freedom below a thousand.
TERMS = 200
TINY = 1e-300
#: Newton steps from the normal quantile's expansion.
STEPS = 12
#: Of the quantile, by which the last step may move it.
ENOUGH = 1e-10
#: Above so many degrees of freedom the distribution is the normal one for our purposes.
MOST_DF = 1e6


def p_value(t: npt.ArrayLike, df: npt.ArrayLike) -> Floats:
    """Two-sided probability of a value at least as far from 0 as ``t``; NaN where either is NaN.

    It is the regularised incomplete beta function I_x(df / 2, 1 / 2) at x = df / (df + t^2) (DLMF 8.17.2 and the
    t distribution's definition).

    Parameters:
        t: values, of any shape.
        df: degrees of freedom (> 0, need not be whole), of a shape that broadcasts with it.
    """
    value, freedom = np.broadcast_arrays(np.abs(np.asarray(t, dtype=np.float64)), np.asarray(df, dtype=np.float64))
    freedom = np.minimum(freedom, MOST_DF)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        square = value * value
        x, y = freedom / (freedom + square), square / (freedom + square)  # y = 1 - x without cancellation
        x, y = np.where(np.isinf(square), 0.0, x), np.where(np.isinf(square), 1.0, y)
        return _incomplete_beta(freedom / 2, np.full(freedom.shape, 0.5), x, y)


def quantile(confidence: float, df: npt.ArrayLike) -> Floats:
    """``t`` with ``confidence`` of the distribution between -t and t.

    Newton's method on :func:`p_value`, from the first terms of the expansion around the normal quantile
    (Abramowitz and Stegun 26.7.5); the tail is convex, so that steps from below do not overshoot.

    Parameters:
        df: degrees of freedom, at least 1.
    """
    freedom = np.minimum(np.asarray(df, dtype=np.float64), MOST_DF)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    t = np.full(freedom.shape, z) + (z**3 + z) / (4 * freedom)
    log_scale = _log_gamma((freedom + 1) / 2) - _log_gamma(freedom / 2) - np.log(freedom * np.pi) / 2
    for _ in range(STEPS):
        density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(t * t / freedom))
        step = (p_value(t, freedom) - (1 - confidence)) / (2 * density)
        t = t + step
        if np.all(np.abs(step) <= ENOUGH * t):
            break
    found: Floats = t
    return found


def _incomplete_beta(a: Floats, b: Floats, x: Floats, y: Floats) -> Floats:
    """I_x(a, b) with y = 1 - x, by the continued fraction DLMF 8.17.22 on the side where it converges fast."""
    swap = x > (a + 1) / (a + b + 2)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    u, v = np.where(swap, y, x), np.where(swap, x, y)
    log_front = p * np.log(u) + q * np.log(v) - np.log(p) + _log_gamma(p + q) - _log_gamma(p) - _log_gamma(q)
    part = np.exp(log_front) * _fraction(p, q, u)
    return np.asarray(np.where(swap, 1 - part, part))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction, by Lentz's method as Thompson and Barnett changed it (1986)."""
    c: Floats = np.ones_like(x)
    d: Floats = 1 / _away(1 - (a + b) / (a + 1) * x)
    h: Floats = d.copy()
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = h
        for term in (even, odd):
            d = 1 / _away(1 + term * d)
            c = _away(1 + term / c)
            h = h * d * c
        if not np.any(np.abs(h - before) > 1e-14 * np.abs(h)):
            break
    return h


def _away(values: Floats) -> Floats:
    """Kept away from 0, by which Lentz's method divides."""
    return np.where(np.abs(values) < TINY, TINY, values)


def _log_gamma(values: Floats) -> Floats:
    """ln gamma(x) for x > 0: Stirling's series (DLMF 5.11.1) where it is exact to a double, shifted up to there."""
    x = np.asarray(values, dtype=np.float64)
    shift = np.zeros_like(x)
    for _ in range(10):
        low = x < 10
        shift = np.where(low, shift + np.log(np.where(low, x, 1.0)), shift)
        x = np.where(low, x + 1, x)
    z = 1 / (x * x)
    series = (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z * (1 / 1188 - z * 691 / 360360))))) / x
    found: Floats = (x - 0.5) * np.log(x) - x + np.log(2 * np.pi) / 2 + series - shift
    return found
