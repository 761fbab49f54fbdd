"""Loads of each rank's experts per layer in each of the last steps of a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.capture.live.rank_facts import LayerFacts

#: Steps that are kept.
MOST_STEPS = 64
#: What is kept of a rank's experts in a layer: their assignments, how many have any, and the most that one has.
FEATURES = ("activations", "active_experts", "max_count")
KINDS = ("prefill", "decode", "mixed")

Ints = npt.NDArray[np.int64]


class LastSteps:
    """The last ``MOST_STEPS`` steps. Layers whose placement is not known stay zero.

    Attributes:
        numbers: of the steps, -1 for none yet, int64 [MOST_STEPS].
        begun_ns: Unix time at which each began, int64 [MOST_STEPS].
        kinds: positions in ``KINDS``, int64 [MOST_STEPS].
        loads: FEATURES, uint32 [MOST_STEPS, layers, ep_size, features].
    """

    def __init__(self, layers: int, ep_size: int) -> None:
        self.numbers: Ints = np.full(MOST_STEPS, -1, dtype=np.int64)
        self.begun_ns: Ints = np.zeros(MOST_STEPS, dtype=np.int64)
        self.kinds: Ints = np.zeros(MOST_STEPS, dtype=np.int64)
        self.loads = np.zeros((MOST_STEPS, layers, ep_size, len(FEATURES)), dtype=np.uint32)
        self._at: dict[int, int] = {}
        self._next = 0

    def begin(self, number: int, begun_ns: int, kind: int) -> None:
        """A step, in place of the oldest one."""
        at = self._next
        self._next = (at + 1) % MOST_STEPS
        self._at.pop(int(self.numbers[at]), None)
        self._at[number] = at
        self.numbers[at], self.begun_ns[at], self.kinds[at] = number, begun_ns, kind
        self.loads[at] = 0

    def add(self, numbers: list[int], at: Ints, facts: LayerFacts, counts: npt.NDArray[Any]) -> Ints | None:
        """Counts of steps that have begun, of layers that are placed alike.

        Parameters:
            numbers: of the steps; those that are no longer kept are left out.
            at: positions of the layers.
            facts: of any of them.
            counts: [steps, layers, slots].

        Returns:
            Sums over the steps, [layers, ep_size]; None where the placement is not known.
        """
        first = facts.first_slots
        if first is None:
            return None
        activations = np.add.reduceat(counts, first, axis=2, dtype=np.uint32)
        known_layers = [(place, self._at[number]) for place, number in enumerate(numbers) if number in self._at]
        if known_layers:
            steps, slots = (np.array(column, dtype=np.int64) for column in zip(*known_layers, strict=True))
            cells = np.ix_(slots, at)
            kept_counts = counts if len(known_layers) == len(numbers) else counts[steps]
            active = np.add.reduceat(kept_counts > 0, first, axis=2, dtype=np.uint32)
            largest = np.maximum.reduceat(kept_counts, first, axis=2)
            self.loads[cells] = np.stack([activations[steps], active, largest], axis=3)
        sums: Ints = activations.sum(axis=0, dtype=np.int64)
        return sums

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """By name, in the order of the steps, without those that are not there yet."""
        order = np.argsort(self.numbers, kind="stable")
        order = order[self.numbers[order] >= 0]
        return {
            "last_numbers": self.numbers[order],
            "last_begun_ns": self.begun_ns[order],
            "last_kinds": self.kinds[order],
            "last_loads": self.loads[order],
        }
