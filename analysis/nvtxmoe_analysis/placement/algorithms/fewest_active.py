"""Fewest active experts on the busiest rank: decode reads the weights of every expert that gets any token.

Experts that are active in the same steps are put on different ranks. The sum over steps and ranks of (active experts)^2
is the sum of the co-activations of each rank's pairs, so a matrix [experts, experts] is enough: experts are placed the
most often active first, each on the rank with room where it co-activates least, then pairs are exchanged while the sum
falls. METRO (arXiv 2512.09277) showed that decode needs this and not equal tokens; written anew.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.placement.algorithms import Routing
from nvtxmoe_analysis.placement.layout import Layout, contiguous

ORDER = 40
LABEL = "fewest active experts"

#: Exchanges tried: each takes the best of all pairs.
MOST_EXCHANGES = 200


def place(layer: Routing) -> Layout | None:
    """Return experts placed by co-activation in decode steps, or in all steps where none decodes."""
    steps = layer.decode if layer.decode.any() else np.ones(len(layer.counts), dtype=np.bool_)
    active = (layer.counts[steps] > 0).astype(np.float32)
    together = (active.T @ active).astype(np.float64)
    sizes = contiguous(layer.experts, layer.ranks).sizes
    rank_of = np.full(layer.experts, -1)
    room = sizes.copy()
    pair_counts = np.zeros((layer.ranks, layer.experts))
    for expert in np.argsort(-np.diag(together), kind="stable"):
        rank = int(np.where(room > 0, pair_counts[:, expert], np.inf).argmin())
        rank_of[expert] = rank
        room[rank] -= 1
        pair_counts[rank] += together[expert]
    _exchange(together, rank_of, pair_counts)
    return Layout.of_ranks([np.flatnonzero(rank_of == rank) for rank in range(layer.ranks)])


def _exchange(together: Floats, rank_of: np.ndarray[tuple[int], np.dtype[np.int64]], pair_counts: Floats) -> None:
    """Exchange pairs of experts of different ranks while the sum of co-activations within ranks falls.

    Parameters:
        together: [experts, experts]. rank_of: [experts], changed. met: [ranks, experts], the co-activations of each
            expert with a rank's, changed.
    """
    experts = np.arange(len(together))
    own_counts = np.diag(together)
    for _ in range(MOST_EXCHANGES):
        # Moving expert e to rank r adds met[r, e] and saves met[rank_of[e], e] - own[e].
        leaves = pair_counts[rank_of, experts] - own_counts
        arrives = pair_counts[rank_of][:, experts]  # [to the rank of, expert]
        change = arrives.T - leaves[:, None] + arrives - leaves[None, :] - 2 * together
        change[rank_of[:, None] == rank_of[None, :]] = np.inf
        first_expert, two = np.unravel_index(int(change.argmin()), change.shape)
        if change[first_expert, two] >= -1e-9:
            return
        first, second = rank_of[first_expert], rank_of[two]
        pair_counts[first] += together[two] - together[first_expert]
        pair_counts[second] += together[first_expert] - together[two]
        rank_of[first_expert], rank_of[two] = second, first
