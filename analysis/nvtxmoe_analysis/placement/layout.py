"""A layer's placement: which expert each slot of each rank holds, and the load it gives the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Bools, Ints

Counts = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Load:
    """Work of each rank in each step.

    Attributes:
        tiles: int64 [steps, ranks]: sum over the rank's slots of ceil(count / block_m).
        active: int64 [steps, ranks]: slots with at least one assignment.
        rows: int64 [steps, ranks]: assignments.
    """

    tiles: Ints
    active: Ints
    rows: Ints

    def of(self, steps: Bools | Ints) -> Load:
        """Return the load of some steps, by mask or position."""
        return Load(self.tiles[steps], self.active[steps], self.rows[steps])


@dataclass(frozen=True)
class Layout:
    """A layer's placement.

    Attributes:
        order: int64 [slots]: the logical expert of each physical slot; the slots of rank 0 first, then of rank 1.
        sizes: int64 [ranks]: slots per rank.
    """

    order: Ints
    sizes: Ints

    @classmethod
    def of_ranks(cls, ranks: Sequence[Sequence[int] | Ints]) -> Layout:
        """Return the placement in which each rank holds these experts."""
        sizes = np.array([len(experts) for experts in ranks], dtype=np.int64)
        return cls(np.concatenate([np.asarray(experts, dtype=np.int64) for experts in ranks]), sizes)

    @classmethod
    def equal(cls, order: Sequence[int] | Ints, ranks: int) -> Layout:
        """Return the placement of an order whose slots divide equally between ranks.

        Raises:
            NvtxmoeError: the slots do not divide.
        """
        slots = np.asarray(order, dtype=np.int64)
        if len(slots) % ranks:
            raise NvtxmoeError(f"{len(slots)} slots do not divide equally between {ranks} ranks")
        return cls(slots, np.full(ranks, len(slots) // ranks, dtype=np.int64))

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.sizes)

    @cached_property
    def rank_of(self) -> Ints:
        """int64 [slots]: the rank that holds each slot."""
        return np.repeat(np.arange(self.ranks, dtype=np.int64), self.sizes)

    @cached_property
    def replicas(self) -> tuple[Ints, Ints]:
        """Return of each slot the number of its replica, from 0, and how many its expert has: int64 [slots] each."""
        by_expert = np.argsort(self.order, kind="stable")
        many = np.bincount(self.order)
        first = np.cumsum(many) - many
        number = np.empty(len(self.order), dtype=np.int64)
        number[by_expert] = np.arange(len(self.order)) - first[self.order[by_expert]]
        return number, many[self.order]

    def held(self, rank: int) -> Ints:
        """Return the experts of a rank, in the order of its slots."""
        experts: Ints = self.order[self.rank_of == rank]
        return experts

    def check(self, experts: int) -> None:
        """Check that every expert has a slot, no rank holds one twice, and every rank holds one.

        Raises:
            NvtxmoeError: it does not.
        """
        order = self.order
        if len(order) != int(self.sizes.sum()) or (self.sizes < 1).any():
            raise NvtxmoeError("a rank without a slot")
        if len(order) and (order.min() < 0 or order.max() >= experts):
            bad = int(order[(order < 0) | (order >= experts)][0])
            raise NvtxmoeError(f"expert {bad}, of {experts} experts")
        missing_experts = np.flatnonzero(np.bincount(order, minlength=experts) == 0)
        if len(missing_experts):
            raise NvtxmoeError(f"no slot for expert {int(missing_experts[0])}")
        pairs = self.rank_of * experts + order
        if len(np.unique(pairs)) < len(pairs):
            raise NvtxmoeError("a rank that holds an expert twice")

    def load(self, counts: Counts, block_m: Ints, steps: Ints) -> Load:
        """Return the load that counts give to the ranks.

        Tokens of an expert with several replicas are divided evenly between them; which replica gets one more changes
        from step to step.

        Parameters:
            counts: [steps, experts].
            block_m: [steps], rows of a tile.
            steps: [steps], their numbers.
        """
        slots = counts[:, self.order].astype(np.int32)
        number, many = self.replicas
        several = np.flatnonzero(many > 1)
        if len(several):
            per_replica, remainder = np.divmod(slots[:, several], many[several].astype(np.int32))
            turn = (number[several][None, :] + steps[:, None]) % many[several][None, :]
            slots[:, several] = per_replica + (turn < remainder)
        tiles = (slots + (block_m[:, None].astype(np.int32) - 1)) // block_m[:, None].astype(np.int32)
        return Load(self._by_rank(tiles), self._by_rank((slots > 0).astype(np.int32)), self._by_rank(slots))

    def _by_rank(self, slots: Counts) -> Ints:
        """Return the sums of each rank's slots: [steps, slots] to int64 [steps, ranks]; 0 where a rank has none."""
        out = np.zeros((len(slots), len(self.sizes)), dtype=np.int64)
        first, nonempty = np.cumsum(self.sizes) - self.sizes, self.sizes > 0
        out[:, nonempty] = np.add.reduceat(slots, first[nonempty], axis=1, dtype=np.int64)
        return out


def contiguous(experts: int, ranks: int) -> Layout:
    """Return contiguous blocks, the first ranks with one more where they do not divide: vLLM's default, linear."""
    each, more = divmod(experts, ranks)
    sizes = np.array([each + (rank < more) for rank in range(ranks)], dtype=np.int64)
    return Layout(np.arange(experts, dtype=np.int64), sizes)


def round_robin(experts: int, ranks: int) -> Layout:
    """Return the placement in which expert e is on rank e modulo ranks: vLLM's round_robin."""
    return Layout.of_ranks([np.arange(rank, experts, ranks) for rank in range(ranks)])
