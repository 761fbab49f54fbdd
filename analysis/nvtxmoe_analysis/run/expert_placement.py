"""Which rank holds which expert: the expert-parallel groups of a run, and where each expert or slot lies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.run.parallel_groups import EXPERT, TENSOR, rank_groups

LOCAL_EXPERTS, LINEAR = "local_experts", "linear"


@dataclass(frozen=True)
class ExpertGroup:
    """The ranks that share the experts of some layers between them.

    Attributes:
        metas: of its ranks, by rank.
        ep_size: ranks that the experts are divided between; 1 without expert parallelism.
    """

    metas: tuple[Meta, ...]
    ep_size: int

    @property
    def token_groups(self) -> frozenset[int]:
        """The tensor-parallel groups whose tokens these ranks serve, as ``Meta.tp_group`` numbers them."""
        return frozenset(meta.tp_group for meta in self.metas)

    @property
    def token_groups_expected(self) -> int:
        """How many those are when every rank's report is there."""
        return max(1, self.ep_size // max(meta.tp_size for meta in self.metas))


@dataclass(frozen=True)
class Placement:
    """Where the slots of a layer lie.

    Attributes:
        rank_of: [slots] the expert-parallel rank that holds each; None when that can't be told.
        source: ``local_experts`` (moe.meta says so) or ``linear`` (contiguous blocks, the first ranks one more each
            where they don't divide: vLLM's default); None without ``rank_of``.
        reason: why it can't be told.
    """

    rank_of: Ints | None = None
    source: str | None = None
    reason: str | None = None


def expert_groups(metas: Iterable[Mapping[int, Meta]]) -> list[ExpertGroup]:
    """The groups of a run, from moe.meta of all reports. Without expert parallelism a tensor-parallel group is one."""
    every = sorted((meta for report in metas for meta in report.values()), key=lambda meta: meta.rank)
    groups = rank_groups(every)
    kinds = {kind: dict(groups[kind].select("rank", "group").iter_rows()) for kind in (EXPERT, TENSOR)}
    members: dict[tuple[str, int], list[Meta]] = defaultdict(list)
    for meta in every:
        kind = EXPERT if size(meta, "ep_size", 1) > 1 else TENSOR
        members[kind, kinds[kind][meta.rank]].append(meta)
    return [ExpertGroup(tuple(group), max(size(m, "ep_size", 1) for m in group)) for group in members.values()]


def size(meta: Meta, key: str, absent: int) -> int:
    """A number of moe.meta that is not required."""
    value = meta.raw.get(key)
    return value if type(value) is int and value >= absent else absent


def place(group: ExpertGroup, layer: int, slots: int, *, physical: bool) -> Placement:
    """Where the experts of a layer lie.

    Parameters:
        slots: number of logical experts, or of physical ones where ``physical``.
    """
    if group.ep_size == 1:
        return Placement(reason="no expert parallelism: there are no ranks to compare")
    if group.ep_size > slots:
        return Placement(reason=f"moe.meta says ep_size {group.ep_size}, of {slots} experts")
    if not physical and any(meta.raw.get("eplb") for meta in group.metas):
        return Placement(reason="EPLB is on, and moe.physical does not say which replicas served the tokens")
    rank_of = np.full(slots, -1, dtype=np.int64)
    for meta in group.metas:
        rank = size(meta, "ep_rank", 0)
        if rank >= group.ep_size:
            return Placement(reason=f"moe.meta says ep_rank {rank} of ep_size {group.ep_size}")
        declared = meta.layers[layer].local_experts if layer in meta.layers else None
        experts = np.array([e for e in declared or () if 0 <= e < slots], dtype=np.int64)
        twice = experts[(rank_of[experts] >= 0) & (rank_of[experts] != rank)]
        if len(twice):
            both = sorted((int(rank_of[twice[0]]), rank))
            return Placement(reason=f"expert {twice[0]} is on ranks {both[0]} and {both[1]}")
        rank_of[experts] = rank
    if (rank_of >= 0).all():
        return Placement(rank_of, LOCAL_EXPERTS)
    linear = linear_placement(slots, group.ep_size)
    if np.any((rank_of >= 0) & (rank_of != linear)):
        missing = int(np.flatnonzero(rank_of < 0)[0])
        return Placement(reason=f"moe.meta does not tell which rank holds expert {missing}")
    return Placement(linear, LINEAR)


def linear_placement(slots: int, ranks: int) -> Ints:
    """[slots] rank of each slot in contiguous blocks; where they don't divide, the first ranks have one more."""
    each, more = divmod(slots, ranks)
    return np.repeat(np.arange(ranks), [each + (rank < more) for rank in range(ranks)])
