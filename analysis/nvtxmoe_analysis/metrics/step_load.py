"""What the experts, slots and ranks of each layer got in each step: what balance is measured of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.run.expert_placement import ExpertGroup, Placement, expert_groups, place
from nvtxmoe_analysis.run.run_facts import RunFacts

NO_META = Placement(reason="moe.meta is missing: nothing tells which rank holds which expert")


@dataclass(frozen=True)
class Load:
    """One layer of one expert group.

    Attributes:
        group: number of the expert group.
        steps: [steps] rising.
        experts: [steps, experts] assignments of logical experts, summed over the tensor-parallel groups that these
            ranks serve.
        slots: [steps, slots] the same of physical experts where moe.physical has them all, else ``experts``.
        ranks: [steps, ranks] the same by expert-parallel rank; None when ``placement`` has a reason instead.
    """

    layer: int
    group: int
    steps: Ints
    experts: Ints
    slots: Ints
    physical: bool
    ranks: Ints | None
    placement: Placement


def loads(results: RunFacts) -> Iterator[Load]:
    """Every layer of every expert group that has counts, by layer and group."""
    groups = expert_groups(report.metas for report in results.reports)
    number = {tokens: at for at, group in enumerate(groups) for tokens in sorted(group.token_groups)}
    logical, physical = _Cells(results.routing.counts, number), _Cells(results.physical, number)
    for layer, at in logical.keys:
        steps, experts = logical.summed(layer, at)
        replicas = physical.summed(layer, at)
        is_physical = np.array_equal(steps, replicas[0])
        slots = replicas[1] if is_physical else experts
        placement = NO_META
        if at >= 0:
            missing_source = _missing_source(groups[at], results)
            located = place(groups[at], layer, slots.shape[1], physical=is_physical)
            placement = Placement(reason=missing_source) if missing_source and located.rank_of is not None else located
        ranks = None
        if placement.rank_of is not None:
            ranks = _by_rank(slots, placement.rank_of, groups[at].ep_size)
        yield Load(layer, at, steps, experts, slots, is_physical, ranks, placement)


def _missing_source(group: ExpertGroup, results: RunFacts) -> str | None:
    """Why the tokens at hand are not all that the group's ranks served."""
    present = len(group.token_groups)
    if present < group.token_groups_expected:
        return f"of {group.token_groups_expected} tensor-parallel groups that these ranks serve, {present} is here"
    chosen = results.selection.ranks
    if chosen is not None and any(
        not any(meta.rank in chosen for meta in group.metas if meta.tp_group == tokens) for tokens in group.token_groups
    ):
        return "the option --ranks leaves out ranks whose tokens these ranks serve too"
    return None


def _by_rank(slots: Ints, rank_of: Ints, ranks: int) -> Ints:
    """[steps, ranks] sums of the slots of each rank."""
    out = np.zeros((len(slots), ranks), dtype=np.int64)
    for rank in range(ranks):
        out[:, rank] = slots[:, rank_of == rank].sum(axis=1)
    return out


class _Cells:
    """Cells by layer and expert group. Ranks without moe.meta are a group each, numbered from -1 down."""

    def __init__(self, counts: CountTable, number: dict[int, int]) -> None:
        self._counts = counts
        group = counts.cells["group"]
        silent = {tokens: -1 - at for at, tokens in enumerate(sorted(set(group.to_list()) - number.keys()))}
        expert_group = group.replace_strict({**number, **silent}, return_dtype=pl.Int64)
        at = counts.cells.select("layer", "step", "num_experts").with_columns(expert_group=expert_group)
        self._rows = at.with_row_index("row").partition_by("layer", "expert_group", as_dict=True)

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(layer, expert group) of all cells, in order."""
        return sorted((int(layer), int(group)) for layer, group in self._rows)

    def summed(self, layer: int, group: int) -> tuple[Ints, Ints]:
        """Steps, rising, and [steps, experts] counts, those of several tensor-parallel groups added.

        Data-parallel ranks run in lockstep and their idle batches take step numbers too, so equal numbers are one step.
        """
        rows = self._rows.get((layer, group))
        if rows is None:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.int64)
        width = int(rows["num_experts"].max() or 0)  # type: ignore[arg-type]
        step = rows["step"].to_numpy()
        order = np.argsort(step, kind="stable")
        counts = self._counts.matrix[rows["row"].to_numpy()[order], :width]
        first = np.flatnonzero(np.diff(step[order], prepend=np.iinfo(np.int64).min))
        if len(first) == len(step):
            return step[order], counts.astype(np.int64)
        return step[order[first]], np.add.reduceat(counts, first, axis=0, dtype=np.int64)
