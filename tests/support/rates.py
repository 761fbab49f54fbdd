"""How many draws a simulation has, and how far a rate may be off by chance in so many.

``TEST_DRAWS=1000 TEST_SEED=7 pytest tests/stats`` draws more than the 200 of a usual run, and others.
"""

from __future__ import annotations

import os

from scipy import stats

DRAWS = int(os.environ.get("TEST_DRAWS", "200"))
#: Added to the seed of every simulation.
SEED = int(os.environ.get("TEST_SEED", "0"))
#: A rate that is as it should be fails a test so seldom.
BY_CHANCE = 1 / 1000


def at_most(rate: float, draws: int = DRAWS) -> float:
    """The share of the draws that something of this rate exceeds by chance only: of 200 draws and 5 % it is 10.5 %."""
    return float(stats.binom.ppf(1 - BY_CHANCE, draws, rate)) / draws


def at_least(rate: float, draws: int = DRAWS) -> float:
    """The share of the draws below which something of this rate falls by chance only."""
    return float(stats.binom.ppf(BY_CHANCE, draws, rate)) / draws
