"""Slopes of a fit whose noise has memory: fitted again after the memory is filtered out."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.block_sums import Tables, tabulate
from nvtxmoe_analysis.stats.huber import Fit, Strata, fit
from nvtxmoe_analysis.stats.noise_memory import LEAST_MEMORY, filtered, spectra
from nvtxmoe_analysis.stats.trend import trend_of, without

#: Residuals beyond so many scales are pulled in before the filter, which would spread them over their neighbours.
FAR = 3.0
#: How often the memory is estimated, each time from the residuals of the last slopes.
TURNS = 2


def whitened(x: Floats, strata: Strata, model: Fit, tables: Tables, columns: Floats) -> tuple[Floats, Tables]:
    """Return slopes [models, features] and their sums by block, free of the noise's memory.

    Models whose noise has none keep their slopes.

    Parameters:
        x, strata, columns: as of ``huber.fit``, whose result ``model`` is.
        tables: of the model, with the columns.
    """
    slopes = model.slopes
    limit = FAR * model.scale_ns[:, None]
    calm = np.clip(model.residuals, -limit, limit)
    known = calm + np.einsum("mf,mfn->mn", slopes, x)
    skipped = [len(trend_of(size)) for size in strata.sizes.tolist()]
    going = np.arange(len(x))
    for _ in range(TURNS):
        spectrum = spectra(calm[going], strata, skipped)
        strength = [values.max(axis=1) / values.min(axis=1) for values in spectrum if values is not None]
        is_strong = (
            np.max(strength, axis=0, initial=1.0) >= LEAST_MEMORY if strength else np.zeros(len(going), dtype=bool)
        )
        going = going[is_strong]
        if not len(going):
            break
        parts = [None if values is None else values[is_strong] for values in spectrum]
        fast = without(filtered(x[going], parts, strata), columns, strata)
        scale = np.sqrt((fast * fast).mean(axis=2))
        scale = np.where(scale > 0, scale, 1.0)
        fast = fast / scale[..., None]
        y = strata.centred(filtered(known[going], parts, strata))
        refitted = fit(y, fast, strata, weights=model.weights[going], columns=columns)
        slopes = slopes.copy()
        slopes[going] = refitted.slopes / scale
        tables = tables.replaced(going, tabulate(fast, strata, refitted, columns).scaled(scale))
        left = known[going] - np.einsum("mf,mfn->mn", slopes[going], x[going])
        calm[going] = np.clip(left, -limit[going], limit[going])
    return slopes, tables
