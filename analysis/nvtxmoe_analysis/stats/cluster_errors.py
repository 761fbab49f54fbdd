"""Standard errors of slopes that hold where rows of a block of steps are alike, with their degrees of freedom.

The estimate is the bias-reduced cluster-robust one (CR2) with the degrees of freedom of Bell and McCaffrey ("Bias
reduction in standard errors for linear regression with multi-stage samples", 2002), which Imbens and Kolesár
("Robust standard errors in small samples", 2016) recommend when clusters are few or unlike each other. Blocks of
consecutive steps as clusters hold where neighbouring steps are alike too (Bester, Conley and Hansen, "Inference with
dependent data using cluster covariance estimators", 2011). Huber's clipped residuals take the place of residuals, and
the rows that are not clipped that of rows: the sandwich of an M-estimator (Huber and Ronchetti 2009, 7.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.block_sums import Tables

#: A block whose rows leave so little of its share in the variation free of the fit: with a share of ``FIXING`` or more
#: it fixes the slope, and no error can be told. With less, as where all its rows are clipped, its score stays as it is.
LEAST_FREE, FIXING = 1e-6, 1e-3


@dataclass(frozen=True)
class Errors:
    """Of the last feature's slope.

    Attributes:
        error: standard error, [models]; NaN without variation of the feature.
        df: degrees of freedom of Student's t, [models]. Few where few blocks hold the feature's variation.
        share: each block's share of that variation, [models, blocks].
        pull: what each block pulls the slope by, [models, blocks]: the standard error is the root of their squares.
        form: of independent noise of variance 1 the pulls' covariance, [models, blocks, blocks].
    """

    error: Floats
    df: Floats
    share: Floats
    pull: Floats
    form: Floats

    @property
    def largest(self) -> Floats:
        """The largest block's share of the variation, [models]."""
        largest: Floats = self.share.max(axis=1)
        return largest


def slope_errors(tables: Tables) -> Errors:
    """CR2 of the last feature, given the first where there are two.

    With z the feature less its stratum's mean and less what the first feature explains, block g's score is the sum of
    z x clipped residual. With independent noise the scores' covariance is that of z, less what the fit of the slopes,
    levels and further columns takes up: C = diag(h) - hh' - uu' - vv' - ww', h the blocks' shares in the variation of
    z, u, v and w from the levels, the first feature and the columns. Each score is scaled to have the variance h; of
    that quadratic form the degrees of freedom are trace^2 / trace of the square.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = tables.held.sum(axis=2)
        inverse = np.where(rows > 0.5, 1 / rows, 0.0)
        mean = (tables.sums.sum(axis=2) * inverse[..., None])[:, :, None]
        sums = tables.sums - tables.held[..., None] * mean
        pulls = (tables.pulls - tables.push[..., None] * mean).sum(axis=1)
        # Products of deviations from the stratum's mean, by block: [models, blocks, features, features].
        products = (
            tables.squares
            - mean[..., :, None] * tables.sums[..., None, :]
            - tables.sums[..., :, None] * mean[..., None, :]
            + tables.held[..., None, None] * mean[..., :, None] * mean[..., None, :]
        ).sum(axis=1)
        all_products = products.sum(axis=1)
        if products.shape[-1] == 1:
            turn = np.ones((len(products), 1))
            v = np.zeros(products.shape[:2])
        else:
            turn = np.stack([-all_products[:, 0, 1] / all_products[:, 0, 0], np.ones(len(all_products))], axis=-1)
            v = np.einsum("mgk,mk->mg", products[:, :, 0], turn) / np.sqrt(all_products[:, 0, 0])[:, None]
        variation = np.einsum("mj,mjk,mk->m", turn, all_products, turn)
        size = np.sqrt(variation)[:, None]
        h = np.einsum("mj,mgjk,mk->mg", turn, products, turn) / variation[:, None]
        u = np.einsum("msgj,mj->msg", sums, turn) * np.sqrt(inverse)[..., None] / size[..., None]
        v = v / size
        free = -h[:, :, None] * h[:, None] - np.matmul(u.transpose(0, 2, 1), u) - v[:, :, None] * v[:, None]
        blocks = np.arange(h.shape[1])
        free[:, blocks, blocks] += h
        block_columns = np.einsum("mgcj,mj->mgc", tables.columns, turn) / size[..., None]
        free -= np.matmul(block_columns, block_columns.transpose(0, 2, 1))
        blocks_left = free[:, blocks, blocks]
        tied = blocks_left <= LEAST_FREE * h
        scale = np.where(tied, 1.0, np.sqrt(h / blocks_left))
        scores = np.einsum("mgj,mj->mg", pulls, turn) * scale
        pull = scores / variation[:, None]
        form = scale[:, :, None] * free * scale[:, None] / variation[:, None, None]
        df = np.where((tied & (h >= FIXING)).any(axis=1), 0.0, degrees_of_freedom(form))
    return Errors(root_of_squares(pull), df, h, pull, form)


def root_of_squares(pull: Floats) -> Floats:
    """Standard error of what blocks pull: [models, blocks] to [models]."""
    root: Floats = np.sqrt((pull * pull).sum(axis=1))
    return root


def degrees_of_freedom(form: Floats) -> Floats:
    """trace^2 / trace of the square, [models, blocks, blocks] to [models]; NaN of a form of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        trace = np.trace(form, axis1=1, axis2=2)
        df: Floats = trace**2 / (form * form).sum(axis=(1, 2))
        return df
