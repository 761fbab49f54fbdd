"""Student's t distribution in numpy: importing scipy.special costs more than all models take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.core.arrays import Floats

#: Terms of the continued fraction; it converges in far fewer for degrees of freedom below a thousand.
TERMS = 200
TERMS_AT_ONCE = 20
TINY = 1e-300
#: Halley steps from the normal quantile's expansion.
STEPS = 12
#: Of the quantile, by which the last step may move it: each error is about the third power of the one before.
ENOUGH = 1e-6
#: ln gamma(1 / 2).
LOG_GAMMA_HALF = math.log(math.pi) / 2
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
    return _tail(value, freedom, _log_gammas(freedom))


def quantile(confidence: float, df: npt.ArrayLike) -> Floats:
    """``t`` with ``confidence`` of the distribution between -t and t.

    Halley's method on :func:`p_value`, from the first terms of the expansion around the normal quantile
    (Abramowitz and Stegun 26.7.5). With at least 1 degree of freedom its divisor stays above 0.

    Parameters:
        df: degrees of freedom, at least 1.
    """
    freedom = np.minimum(np.asarray(df, dtype=np.float64), MOST_DF)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    t = z + (first + (second + third / freedom) / freedom) / freedom
    gammas = _log_gammas(freedom)
    log_scale = gammas[0] - gammas[1] - np.log(freedom * np.pi) / 2
    for _ in range(STEPS):
        density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(t * t / freedom))
        newton = (_tail(t, freedom, gammas) - (1 - confidence)) / (2 * density)
        step = newton / (1 - newton * (freedom + 1) * t / (freedom + t * t) / 2)
        t = t + step
        if np.all(np.abs(step) <= ENOUGH * t):
            break
    quantiles: Floats = t
    return quantiles


def _log_gammas(freedom: Floats) -> tuple[Floats, Floats]:
    """ln gamma of df / 2 + 1 / 2 and of df / 2."""
    half = freedom / 2
    of_sum, of_half = _log_gamma(np.stack([half + 0.5, half]))
    return of_sum, of_half


def _tail(value: Floats, freedom: Floats, gammas: tuple[Floats, Floats]) -> Floats:
    """:func:`p_value` of values of at least 0, with the :func:`_log_gammas` of the degrees of freedom."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        square = value * value
        x, y = freedom / (freedom + square), square / (freedom + square)  # y = 1 - x without cancellation
        x, y = np.where(np.isinf(square), 0.0, x), np.where(np.isinf(square), 1.0, y)
        return _incomplete_beta(freedom / 2, x, y, gammas)


def _incomplete_beta(a: Floats, x: Floats, y: Floats, gammas: tuple[Floats, Floats]) -> Floats:
    """I_x(a, 1 / 2) with y = 1 - x, by the continued fraction DLMF 8.17.22 on the side where it converges fast."""
    of_sum, of_a = gammas
    b = np.full(a.shape, 0.5)
    swap = x > (a + 1) / (a + b + 2)
    p, q = np.where(swap, b, a), np.where(swap, a, b)
    u, v = np.where(swap, y, x), np.where(swap, x, y)
    log_front = p * np.log(u) + q * np.log(v) - np.log(p) + of_sum - np.where(swap, LOG_GAMMA_HALF, of_a)
    part = np.exp(log_front - np.where(swap, of_a, LOG_GAMMA_HALF)) * _fraction(p, q, u)
    return np.asarray(np.where(swap, 1 - part, part))


def _fraction(a: Floats, b: Floats, x: Floats) -> Floats:
    """The continued fraction, by Lentz's method as Thompson and Barnett changed it (1986)."""
    c: Floats = np.ones_like(x)
    # TINY keeps what Lentz's method divides by away from 0, and changes no other double.
    d: Floats = 1 / (1 - (a + b) / (a + 1) * x + TINY)
    h: Floats = d.copy()
    for even, odd in _coefficients(a, b, x):
        before = h
        for term in (even, odd):
            d = 1 / (1 + term * d + TINY)
            c = 1 + term / c + TINY
            h = h * d * c
        if not np.any(np.abs(h - before) > 1e-14 * np.abs(h)):
            break
    return h


def _coefficients(a: Floats, b: Floats, x: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The fraction's terms, an even and an odd one at a time: computed many at once, as most inputs are short."""
    for first in range(1, TERMS, TERMS_AT_ONCE):
        m = np.arange(first, min(first + TERMS_AT_ONCE, TERMS)).reshape(-1, *[1] * x.ndim)
        twice = a + 2 * m
        even = m * (b - m) * x / ((twice - 1) * twice)
        odd = -(a + m) * (a + b + m) * x / (twice * (twice + 1))
        yield from zip(even, odd, strict=True)


def _log_gamma(values: Floats) -> Floats:
    """ln gamma(x) for x > 0: Stirling's series (DLMF 5.11.1) where it is exact to a double, shifted up to there."""
    x = np.asarray(values, dtype=np.float64)
    shift = np.zeros_like(x)
    for _ in range(10):
        low = x < 10
        if not low.any():
            break
        shift = np.where(low, shift + np.log(np.where(low, x, 1.0)), shift)
        x = np.where(low, x + 1, x)
    z = 1 / (x * x)
    series = (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z * (1 / 1188 - z * 691 / 360360))))) / x
    logarithm: Floats = (x - 0.5) * np.log(x) - x + np.log(2 * np.pi) / 2 + series - shift
    return logarithm
