"""What a layer costs a rank: its own kernel time by tiles and active experts, with the speed of its GPU.

    own time of a rank = speed of the rank x (level + tiles x slope + active experts x slope)

The level is that of steps alike (``gram.rows_of``), so that slopes come from differences between ranks in one step and
between steps of the same batch. Slopes are not negative. Each layer has its own, drawn towards the mean of all layers
as far as its own steps leave it uncertain; speeds are those of the phase. The model predicts differences: the time
under another placement is the measured time of the rank in that step plus speed x slope x difference of the load, so
that noise and what the model leaves out stay as they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats
from nvtxmoe_analysis.placement.blocks import Blocks
from nvtxmoe_analysis.placement.gram import CLIP, Rows, products, rows_of
from nvtxmoe_analysis.placement.layout import Load
from nvtxmoe_analysis.placement.least_squares import non_negative, spread_between, unbounded
from nvtxmoe_analysis.placement.run_data import LayerData

TILES, ACTIVE = FEATURES = ("expert tiles", "active experts")
#: Turns of speeds, clipping and slopes; of layers' slopes against the shared coefficients.
TURNS, INNER = 4, 6
#: The share of a feature's variation that must be left beside the ranks' speeds.
LEAST_LEFT = 1e-4
#: Draws a layer's slope to the mean as good as wholly.
WHOLLY = 1e9


@dataclass(frozen=True)
class CostModel:
    """The model of a phase.

    Attributes:
        features: of FEATURES, those that are fitted.
        slopes: float64 [layers, features], ns at the mean GPU's speed.
        pooled: float64 [features], the mean of the layers' slopes that those with little variation are drawn to.
        speed: float64 [ranks]: time over the mean GPU's at the same load.
        left_out: slopes and speeds without each block of the fit: float64 [blocks, layers, features], [blocks, ranks].
        between: float64 [features]: standard deviation of layers' slopes beyond their errors.
        reason: why nothing could be fitted; then the other attributes are empty.
    """

    features: tuple[str, ...] = ()
    slopes: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    pooled: Floats = field(default_factory=lambda: np.zeros(0))
    speed: Floats = field(default_factory=lambda: np.zeros(0))
    left_out: tuple[Floats, Floats] = field(default_factory=lambda: (np.zeros((0, 0, 0)), np.zeros((0, 0))))
    between: Floats = field(default_factory=lambda: np.zeros(0))
    reason: str | None = None

    def table(self, load: Load) -> Floats:
        """Return the fitted features of a load: float64 [steps, ranks, features]."""
        return table(load, self.features)


def table(load: Load, features: Sequence[str]) -> Floats:
    """Return features of a load: float64 [steps, ranks, features]."""
    named = {TILES: load.tiles, ACTIVE: load.active}
    return np.stack([named[name] for name in features], axis=-1).astype(np.float64)


def fit(layers: Sequence[LayerData], blocks: Blocks, chosen: Sequence[Bools], for_fit: Bools) -> CostModel:
    """Fit a phase.

    Parameters:
        chosen: of each layer bool [steps]: those to fit by.
        for_fit: bool [layers]: those whose rows the fit may see; the others get the mean of their slopes.
    """
    features = _features(layers, chosen, for_fit)
    if not features:
        return CostModel(reason="all steps and ranks have the same load: what load costs can't be told")
    rows = [
        rows_of(layer, blocks, steps if seen else np.zeros_like(steps), table(layer.load, features))
        for layer, steps, seen in zip(layers, chosen, for_fit, strict=True)
    ]
    solver = _Solver(rows, blocks.number, len(layers[0].ranks), len(features), for_fit)
    return solver.model(features)


def _features(layers: Sequence[LayerData], chosen: Sequence[Bools], for_fit: Bools) -> tuple[str, ...]:
    """Return the features that vary; of two that are equal in every row the active experts."""
    seen = [
        table(layer.load, FEATURES)[steps].reshape(-1, 2)
        for layer, steps, fits in zip(layers, chosen, for_fit, strict=True)
        if fits and steps.any()
    ]
    if not seen:
        return ()
    varies = [any((values[:, at] != values[0, at]).any() for values in seen) for at in range(2)]
    if varies[0] and all(np.array_equal(values[:, 0], values[:, 1]) for values in seen):
        varies[0] = False
    return tuple(name for name, does_vary in zip(FEATURES, varies, strict=True) if does_vary)


class _Solver:
    """Solves one phase for all layers, with all blocks and without each of them."""

    def __init__(self, rows: Sequence[Rows], blocks: int, ranks: int, features: int, for_fit: Bools) -> None:
        self._rows, self._blocks, self._features = rows, blocks, features
        self._speed = np.ones(ranks)
        self._seen = for_fit.astype(np.float64)
        # Where ranks have tokens of their own (data parallelism), these cost time that no placement moves.
        self._with_tokens = any(
            len(layer.own_ns) and np.ptp(layer.centred(layer.own_tokens[:, None])) > 0 for layer in rows
        )
        self._others = ranks - 1 + int(self._with_tokens)

    def model(self, features: tuple[str, ...]) -> CostModel:
        """Return the fitted model."""
        layers = len(self._rows)
        slopes, others = np.zeros((layers, self._features)), np.zeros(self._others)
        clip, pull = np.inf, np.full((layers, self._features), WHOLLY)
        for _ in range(TURNS):
            sums, scale = products(
                self._rows, self._speed, slopes, others, self._blocks, with_tokens=self._with_tokens, clip=clip
            )
            sums_of_layers = sums.sum(axis=0)
            if not self._has_contrast(sums_of_layers.sum(axis=0)):
                reason = "the ranks' loads differ in the same way in all steps: load and speed can't be told apart"
                return CostModel(reason=reason)
            pull, between = self._pull(sums)
            pooled, slopes, others = (solution[0] for solution in self._solve(sums_of_layers[None], pull))
            self._turn_speed(others)
            others = np.concatenate([np.zeros(len(self._speed) - 1), others[len(self._speed) - 1 :]])
            clip = CLIP * scale if scale > 0 else np.inf
        sums, _ = products(
            self._rows, self._speed, slopes, others, self._blocks, with_tokens=self._with_tokens, clip=clip
        )
        used_blocks = np.flatnonzero(sums[:, :, -1, -1].any(axis=1))
        without = sums.sum(axis=0)[None] - sums[used_blocks]
        pooled, slopes, others = (solution[0] for solution in self._solve(sums.sum(axis=0)[None], pull))
        # A slope at its bound of 0 is as uncertain as one beside it: the scatter is that of slopes without a bound.
        _, free, _ = self._solve(sums.sum(axis=0)[None], pull, unbounded)
        _, free_out, others_out = self._solve(without, pull, unbounded)
        slopes_out = slopes[None] + free_out - free
        speeds_out = self._speed[None, :] * (1 + self._contrasts(others_out))
        self._turn_speed(others)
        return CostModel(features, slopes, pooled, self._speed, (slopes_out, speeds_out), np.sqrt(between))

    def _turn_speed(self, others: Floats) -> None:
        self._speed = self._speed * (1 + self._contrasts(others))
        self._speed = self._speed / self._speed.mean()

    def _contrasts(self, others: Floats) -> Floats:
        """Return each rank's relative speed, which add up to 0: [..., ranks]."""
        free_contrasts = others[..., : len(self._speed) - 1]
        return np.concatenate([free_contrasts, -free_contrasts.sum(axis=-1, keepdims=True)], axis=-1)

    def _parts(self, sums: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return the products of features, of features with other columns, of these, and of both with the time."""
        k = self._features
        return sums[..., :k, :k], sums[..., :k, k:-1], sums[..., k:-1, k:-1], sums[..., :k, -1], sums[..., k:-1, -1]

    def _has_contrast(self, all_blocks: Floats) -> bool:
        """Return whether any feature varies beside the other columns."""
        xx, xn, nn, _, _ = self._parts(all_blocks)
        left = np.diagonal(xx - xn @ np.linalg.pinv(nn, hermitian=True) @ xn.T)
        return bool((left > LEAST_LEFT * np.maximum(np.diagonal(xx), 1e-300)).any())

    def _solve(
        self, sums: Floats, pull: Floats, least: Callable[[Floats, Floats], Floats] = non_negative
    ) -> tuple[Floats, Floats, Floats]:
        """Return pooled slopes, layers' slopes and other coefficients: [some, features], [some, layers, features],
        [some, others].

        Parameters:
            sums: float64 [some, layers, columns, columns]. pull: float64 [layers, features]: how strongly each
                layer's slopes are drawn to the pooled ones. least: how slopes are found.
        """
        xx, xn, nn, xz, nz = self._parts(sums)
        inverse = np.linalg.pinv(nn.sum(axis=1), hermitian=True)
        all_xx, all_xn, all_xz, all_nz = (sums.sum(axis=1) for sums in (xx, xn, xz, nz))
        pooled = least(
            all_xx - all_xn @ inverse @ all_xn.transpose(0, 2, 1),
            all_xz - (all_xn @ inverse @ all_nz[..., None])[..., 0],
        )
        slopes = np.repeat(pooled[:, None, :], sums.shape[1], axis=1)
        others = np.zeros((len(sums), self._others))
        drawn = pull[None, :, :, None] * np.eye(self._features)
        for _ in range(INNER):
            free = all_nz - np.einsum("slkn,slk->sn", xn, slopes)
            others = np.einsum("snm,sm->sn", inverse, free)
            target = xz - np.einsum("slkn,sn->slk", xn, others)
            slopes = least(xx + drawn, target + pull[None] * pooled[:, None, :])
        return pooled, slopes, others

    def _pull(self, sums: Floats) -> tuple[Floats, Floats]:
        """Return how strongly layers are drawn to the mean, and the variance of slopes between layers.

        A layer's own estimate has the cluster-robust variance of its blocks' scores. Where layers differ no more than
        that, all are drawn wholly.
        """
        k, layers = self._features, len(self._rows)
        pull, between = np.full((layers, k), WHOLLY), np.zeros(k)
        all_blocks = sums.sum(axis=0)
        pull *= np.maximum(np.diagonal(all_blocks.sum(axis=0))[:k], 1.0)[None, :]
        if layers < 2:
            return pull, between
        others = self._solve(all_blocks[None], pull)[2][0]
        xx, xn, _, xz, _ = self._parts(sums)
        own_gram, left = xx.sum(axis=0), xz - xn @ others
        inverse = np.linalg.pinv(own_gram, hermitian=True)
        alone = np.einsum("lkj,lj->lk", inverse, left.sum(axis=0))
        scores = left - np.einsum("blkj,lj->blk", xx, alone)
        spread = np.einsum("lkj,blj->blk", inverse, scores)
        num_blocks = max(2, int((sums[:, :, -1, -1] > 0).any(axis=1).sum()))
        variance = (spread**2).sum(axis=0) * num_blocks / (num_blocks - 1)
        variance[np.diagonal(own_gram, axis1=1, axis2=2) <= 0] = np.inf
        for at in range(k):
            between[at] = spread_between(alone[:, at], variance[:, at])
            if between[at] > 0:
                # With noise s^2 = variance x G the layer's own weight is G / s^2, the mean's 1 / between.
                estimable = np.isfinite(variance[:, at]) & (self._seen > 0)
                noise = variance[estimable, at] * np.diagonal(own_gram[estimable], axis1=1, axis2=2)[:, at]
                pull[estimable, at] = noise / between[at]
        return pull, between
