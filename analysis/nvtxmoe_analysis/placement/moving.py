"""What it costs to bring the weights to another placement while the server runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.placement.layout import Layout


@dataclass(frozen=True)
class Move:
    """Weights that change ranks.

    Attributes:
        experts: how many a rank has to get, over all layers and ranks; None where today's placement is unknown.
        moved_bytes: their weights; None where the size of an expert is unknown.
        busiest_bytes: the most that one rank gets or gives.
        reason: why something is None.
    """

    experts: int | None
    moved_bytes: int | None
    busiest_bytes: int | None
    reason: str | None = None

    def ns_per_step(self, link_gbs: float | None, steps: int) -> float | None:
        """Return the time per step of moving once in so many steps, if ranks wait meanwhile; None where unknown.

        Parameters:
            link_gbs: GB/s (10^9 bytes) that a rank gets or gives.
        """
        if self.busiest_bytes is None or not link_gbs:
            return None
        return self.busiest_bytes / link_gbs / steps


def moved(today: Sequence[Layout | None], new: Sequence[Layout], expert_bytes: Sequence[int | None]) -> Move:
    """Return what moves between two placements of all layers. An expert that its rank holds already stays."""
    if any(layout is None for layout in today):
        return Move(None, None, None, "today's placement is not known")
    ranks = new[0].ranks
    got, sent, experts = np.zeros(ranks), np.zeros(ranks), 0
    for before, after, size in zip(today, new, expert_bytes, strict=True):
        assert before is not None
        first_rank = {
            int(expert): int(rank) for expert, rank in zip(before.order[::-1], before.rank_of[::-1], strict=True)
        }
        for rank in range(ranks):
            for expert in np.setdiff1d(after.held(rank), before.held(rank)):
                experts += 1
                got[rank] += size or 0
                sent[first_rank[int(expert)]] += size or 0
    if any(size is None for size in expert_bytes):
        return Move(experts, None, None, "the capture does not tell the bytes of an expert")
    return Move(experts, int(got.sum()), int(max(got.max(), sent.max())))
