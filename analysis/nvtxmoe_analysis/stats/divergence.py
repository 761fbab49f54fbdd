"""How far apart two distributions over experts are."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats


def js_terms(p: Floats, q: Floats) -> Floats:
    """What each expert adds to the Jensen-Shannon divergence, in bits.

    Parameters:
        p, q: distributions, float64 [..., experts], each not negative and of sum 1.

    Returns:
        float64 [..., experts], each term at least 0. Source: J. Lin, Divergence measures based on the Shannon
        entropy, IEEE Trans. Inf. Theory 37 (1991), with both weights 1/2.
    """
    middle = (p + q) / 2.0
    return (_relative(p, middle) + _relative(q, middle)) / 2.0


def js_bits(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence in bits, float64 [...]: 0 where the distributions are equal, 1 where they are
    disjoint. Rounding can't make it negative.
    """
    bits: Floats = np.maximum(js_terms(p, q).sum(axis=-1), 0.0)
    return bits


def js_gradient(p: Floats, q: Floats) -> Floats:
    """How the divergence, in bits, grows with each expert's share in ``p``: log2(p / m) / 2, float64 [experts]. 0 where
    p is 0: no sample of p chose that expert, so nothing there scatters.
    """
    middle = (p + q) / 2.0
    quotient = np.divide(p, middle, out=np.ones_like(middle), where=p > 0)
    slope: Floats = np.log2(quotient) / 2.0
    return slope


def _relative(p: Floats, middle: Floats) -> Floats:
    # p > 0 has middle >= p / 2 > 0, so the quotient is between 0 and 2.
    quotient: Floats = np.divide(p, middle, out=np.ones_like(middle), where=p > 0)
    terms: Floats = p * np.log2(quotient)
    return terms
