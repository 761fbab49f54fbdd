"""Non-negative least squares of one or two slopes, many at once, and how far layers' slopes differ."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats

#: A feature whose variation is less than this share of its own beside another can't be told from it.
COLLINEAR = 1e-9


def non_negative(gram: Floats, target: Floats) -> Floats:
    """Return the slopes >= 0 that minimise b'Gb - 2b'g: float64 [..., slopes].

    Parameters:
        gram: float64 [..., slopes, slopes], positive semidefinite, of one or two slopes. target: float64 [..., slopes].
    """
    squares = np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(squares > 0, np.maximum(target / squares, 0.0), 0.0)
    if gram.shape[-1] == 1:
        return alone
    both = gram[..., 0, 1]
    determinant = squares[..., 0] * squares[..., 1] - both**2
    told_apart = determinant > COLLINEAR * squares[..., 0] * squares[..., 1]
    safe = np.where(told_apart, determinant, 1.0)
    first = (squares[..., 1] * target[..., 0] - both * target[..., 1]) / safe
    second = (squares[..., 0] * target[..., 1] - both * target[..., 0]) / safe
    inside = told_apart & (first >= 0) & (second >= 0)
    gain = np.where(squares > 0, alone * target, 0.0)  # what one slope alone takes off the sum of squares
    first_alone = gain[..., 0] >= gain[..., 1]
    edge = np.stack([np.where(first_alone, alone[..., 0], 0.0), np.where(first_alone, 0.0, alone[..., 1])], axis=-1)
    slopes: Floats = np.where(inside[..., None], np.stack([first, second], axis=-1), edge)
    return slopes


def unbounded(gram: Floats, target: Floats) -> Floats:
    """Return the slopes that minimise b'Gb - 2b'g, of any sign: float64 [..., slopes]. See ``non_negative``."""
    slopes: Floats = (np.linalg.pinv(gram, rcond=COLLINEAR, hermitian=True) @ target[..., None])[..., 0]
    return slopes


def spread_between(slopes: Floats, variances: Floats) -> float:
    """Return the variance of layers' true slopes beyond their errors': DerSimonian and Laird's estimate, 0 or more.

    Parameters:
        slopes, variances: float64 [layers]; layers whose variance is not finite and positive do not count.
    """
    usable = np.isfinite(variances) & (variances > 0)
    if usable.sum() < 2:
        return 0.0
    weight = 1.0 / variances[usable]
    mean = (weight * slopes[usable]).sum() / weight.sum()
    excess_variance = (weight * (slopes[usable] - mean) ** 2).sum() - (usable.sum() - 1)
    scale = weight.sum() - (weight**2).sum() / weight.sum()
    return max(0.0, float(excess_variance / scale)) if scale > 0 else 0.0
