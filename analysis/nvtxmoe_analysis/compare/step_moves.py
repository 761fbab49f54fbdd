"""Uncertainty of a difference of two runs, from how much each step moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.stats.long_run import cosine_sums, drifts, long_run, slowest
from nvtxmoe_analysis.stats.welch import Spread, spread


def in_time_order(numbers: Sequence[Ints], moves: Sequence[Floats]) -> Floats:
    """Join what steps of several kinds move, by step number: float64 [distinct steps, columns].

    Parameters:
        numbers: step numbers of each kind.
        moves: float64 [steps, columns] of each kind.
    """
    if len(moves) == 1:
        return moves[0]
    steps, place = np.unique(np.concatenate(numbers), return_inverse=True)
    out = np.zeros((len(steps), moves[0].shape[1]))
    np.add.at(out, place, np.concatenate(moves))
    return out


@dataclass(frozen=True)
class Uncertainty:
    """Uncertainty of a difference, by column; column 0 is all layers together.

    Attributes:
        spread: standard error and degrees of freedom, [2, columns]: from the spectrum of the steps, and from their
            slowest changes alone, see ``long_run.slowest``.
        drift: of each run, evidence that it drifts, see ``long_run``.
    """

    spread: Spread
    drift: tuple[Floats, Floats]

    def p_value(self, difference: Floats) -> Floats:
        """Two-sided p-value of no difference: the less sure one of both estimates."""
        p: Floats = self.spread.p_value(difference).max(axis=0)
        return p

    def half_width(self, confidence: float) -> Floats:
        """Half the width of the confidence interval around the difference: the wider one of both estimates."""
        half: Floats = self.spread.half_width(confidence).max(axis=0)
        return half

    @property
    def undecided(self) -> Bools:
        """Where drift leaves the difference undecided. Drift of all layers together is drift of each."""
        columns = len(self.drift[0])
        of_mean = drifts(self.drift[0][:1], self.drift[1][:1])
        layers = drifts(self.drift[0][1:], self.drift[1][1:], max(1, columns - 1))
        return np.concatenate([of_mean, layers | of_mean])


def uncertainty(moves: tuple[Floats, Floats]) -> Uncertainty:
    """Estimate the uncertainty of a difference.

    Parameters:
        moves: how much each step of each run moves it, in the order of the steps, float64 [steps, columns].
    """
    powers = [np.square(cosine_sums(series)) for series in moves]
    runs = [long_run(power) for power in powers]
    slow = [slowest(power) for power in powers]
    return Uncertainty(
        spread(
            np.stack([(run.variance, variance) for run, (variance, _) in zip(runs, slow, strict=True)]),
            np.stack([(run.df, df) for run, (_, df) in zip(runs, slow, strict=True)]),
        ),
        (runs[0].drift, runs[1].drift),
    )


def drift_reason(name: str, kind: str, steps: tuple[int, int], drift: tuple[float, float]) -> str:
    """Reason of an undecided difference: which run drifts most over how many steps."""
    run = 0 if drift[0] >= drift[1] else 1
    what = "" if kind == "all" else f"{kind} "
    return f"{name} drifts slowly over the {steps[run]} {what}steps of {'AB'[run]}, so that its mean is not settled"
