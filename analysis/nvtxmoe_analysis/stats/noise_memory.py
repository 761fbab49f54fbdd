"""Memory of the noise along the rows of a stratum, and the filter that takes it out.

Noise of neighbouring steps is alike when clocks and temperatures wander. Its spectrum is then a floor plus a memory:
S(w) = 1 + s c^2 / (c^2 + sin^2(w / 2)), which is that of independent noise plus a first-order autoregression. Shapes
of many lengths c and strengths s are weighed by P. Whittle's likelihood (Estimation and information in stationary time
series, Ark. Mat. 2, 1953), a flat spectrum most of all. The filter divides by the root of the mean shape, so that what
it leaves is about independent, and slow changes count as little as they tell (generalised least squares). It
works on the mirrored rows (a cosine transform), leaves constants alone and does not depend on the direction of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.huber import Strata

#: Prior weight of a spectrum without memory; the shapes with memory share the rest.
FLAT_WEIGHT = 0.8
#: Corners c of the shapes, from half a period over the longest stratum up to MOST_CORNER.
CORNERS, MOST_CORNER = 10, 0.7
#: Strengths s of the memory.
STRENGTHS = np.geomspace(0.5, 3e4, 12)
#: A stratum with fewer rows is not filtered.
LEAST_ROWS = 8
#: Lower spectra than this one count as flat: nothing is filtered.
LEAST_MEMORY = 1.1


@lru_cache(maxsize=32)
def _shapes(rows: int, longest: int) -> tuple[Floats, Floats]:
    """Spectra of a stratum at its cosines 1, 2, ...; the first one is flat.

    Returns:
        their inverses, float64 [rows - 1, shapes], and logarithms, float64 [shapes, rows - 1].
    """
    wave = np.sin(np.pi * np.arange(1, rows) / (2 * rows)) ** 2
    slowest = np.sin(np.pi / (4 * longest))
    corner, strength = (
        values.ravel()[:, None]
        for values in np.meshgrid(np.geomspace(slowest, MOST_CORNER, CORNERS), STRENGTHS, indexing="ij")
    )
    memory = 1.0 + strength * corner**2 / (corner**2 + wave)
    shapes: Floats = np.vstack([np.ones(rows - 1), memory])
    return (1 / shapes).T, np.log(shapes)


def spectra(residuals: Floats, strata: Strata, skipped: Sequence[int]) -> list[Floats | None]:
    """Estimate the spectrum of each model's noise in each stratum.

    Parameters:
        residuals: float64 [models, rows], without far outliers.
        skipped: how many of the slowest cosines a trend has taken out of them, by stratum.

    Returns:
        per stratum float64 [models, rows - 1], relative to the fastest cosine; None where it has too few rows.
    """
    longest = int(strata.sizes.max(initial=LEAST_ROWS))
    bounds = list(zip(strata.starts.tolist(), strata.sizes.tolist(), skipped, strict=True))
    fitted = [bound for bound in bounds if bound[1] >= LEAST_ROWS]
    shapes = 1 + CORNERS * len(STRENGTHS)
    scaled, logs, terms = np.zeros((len(residuals), shapes)), np.zeros(shapes), 0
    for start, size, slow in fitted:
        inverse, logarithm = _shapes(size, longest)
        scaled += _power(residuals[:, start : start + size])[:, slow:] @ inverse[slow:]
        logs += logarithm[:, slow:].sum(axis=1)
        terms += len(inverse) - slow
    if not terms:
        return [None] * len(bounds)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = -0.5 * (logs + terms * np.log(scaled / terms))
    weight = np.nan_to_num(weight, nan=0.0, posinf=0.0)
    weight[:, 0] += np.log(FLAT_WEIGHT)
    weight[:, 1:] += np.log((1 - FLAT_WEIGHT) / (shapes - 1))
    weight = np.exp(weight - weight.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    means: dict[int, Floats] = {}
    for size in {size for _, size, _ in fitted}:
        mean = np.exp(weight @ _shapes(size, longest)[1])
        means[size] = mean / mean[:, -1:]
    return [means.get(size) for _, size, _ in bounds]


def filtered(values: Floats, spectrum: list[Floats | None], strata: Strata) -> Floats:
    """Divide by the root of the spectra: float64 [models, ..., rows] to [models, ..., rows]; means stay."""
    out: Floats = values.copy()
    for start, size, shape in zip(strata.starts.tolist(), strata.sizes.tolist(), spectrum, strict=True):
        if shape is None:
            continue
        gain = np.concatenate([np.ones((len(shape), 1)), shape**-0.5, np.zeros((len(shape), 1))], axis=1)
        gain = gain.reshape(len(gain), *[1] * (values.ndim - 2), size + 1)
        part = values[..., start : start + size]
        wave = np.fft.rfft(np.concatenate([part, part[..., ::-1]], axis=-1))
        out[..., start : start + size] = np.fft.irfft(wave * gain, 2 * size)[..., :size]
    return out


def _power(values: Floats) -> Floats:
    """Squares of the cosine sums 1, 2, ... of rows, each with the variance of independent rows: [..., rows - 1]."""
    rows = values.shape[-1]
    wave = np.fft.rfft(np.concatenate([values, values[..., ::-1]], axis=-1))[..., 1:rows]
    power: Floats = (wave.real**2 + wave.imag**2) / (2 * rows)
    return power
