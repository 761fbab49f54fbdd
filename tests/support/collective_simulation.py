"""Runs of several ranks that meet in collectives, made by a small simulation, so that every answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.export_builder import Export, Process
from tests.support.written_results import Written

REDUCE = "void vllm::cross_device_reduce_1stage<__nv_bfloat16, (int)2>(vllm::RankData *)"
GATHER = "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<(unsigned long)4096>)"


@dataclass(frozen=True)
class Clock:
    """A report's clock: its time is ``(true time - offset_ns) / (1 + drift)``; unix time of its time 0, as recorded."""

    offset_ns: int = 0
    drift: float = 0.0
    recorded_ns: int | None = 0

    def read(self, true_ns: int) -> int:
        return round((true_ns - self.offset_ns) / (1 + self.drift))


@dataclass(frozen=True)
class Meeting:
    """A collective as it was: by rank when the kernel began, how long it waited and transferred (true time)."""

    step: int
    layer: int | None
    name: str
    start: Mapping[int, int]
    wait: Mapping[int, int]
    transfer: Mapping[int, int]

    @property
    def last_rank(self) -> int:
        return max(self.start, key=lambda rank: (self.start[rank], -rank))


@dataclass
class Run:
    """Ranks, each with a process in one of the exports.

    Parameters:
        reports: the ranks of each export.
        own_ns: a rank's own work in a layer of a step.
        before_ns: a rank's work before its layers, launches included.
        tail_ns: how long a rank takes from the last start to its own end; at least as long as the shortest transfer.
        members: the ranks that meet a rank in a layer; all of them by default.
    """

    reports: Sequence[Sequence[int]]
    own_ns: Callable[[int, int, int], int]
    before_ns: Callable[[int, int], int] = lambda step, rank: 1000
    tail_ns: Callable[[int, int, int], int] = lambda step, layer, rank: 4000 + 10 * rank
    clocks: Sequence[Clock] | None = None
    steps: int = 3
    layers: int = 2
    tp_size: int | None = None
    meta: Callable[[int], dict[str, Any]] = lambda rank: {}
    ranged: bool = True
    name: str = REDUCE
    gather: bool = False
    true_start_ns: int = 1_000_000
    step_ns: int = 1_000_000
    met: list[Meeting] = field(default_factory=list)

    def build(self) -> list[Export]:
        """The exports; ``met`` is filled in."""
        clocks = self.clocks or [Clock()] * len(self.reports)
        world = sum(map(len, self.reports))
        exports, workers, clock_of = [], {}, {}
        for clock, ranks in zip(clocks, self.reports, strict=True):
            export = Export()
            export.rows["TARGET_INFO_SESSION_START_TIME"] = (
                [] if clock.recorded_ns is None else [{"utcEpochNs": clock.recorded_ns}]
            )
            # Calls come before the kernels that they launch, by this report's clock too, which may be below zero.
            export.now = min(export.now, clock.read(self.true_start_ns) - 50_000)
            exports.append(export)
            for rank in ranks:
                size = self.tp_size or world
                workers[rank] = Process(
                    export, pid=100 + rank, rank=rank, world_size=world, tp_size=size, layers=self.layers,
                    meta={"ep_size": world, "ep_rank": rank, **self.meta(rank)},
                )  # fmt: skip
                clock_of[rank] = clock
                workers[rank].send_meta()
        for step in range(self.steps):
            self._step(step, workers, clock_of)
        return exports

    def _step(self, step: int, workers: dict[int, Process], clocks: dict[int, Clock]) -> None:
        begun = self.true_start_ns + step * self.step_ns
        now = {rank: begun + self.before_ns(step, rank) for rank in workers}
        open_steps = {rank: worker.step(step) for rank, worker in workers.items()}
        for rank, one in open_steps.items():
            workers[rank].export.now = max(workers[rank].export.now, clocks[rank].read(begun))
            one.__enter__()
        for layer in range(self.layers):
            for rank, worker in workers.items():
                with worker.layer(layer), worker.phase("experts", layer):
                    own = self.own_ns(step, layer, rank)
                    worker.kernel(own, "fused", start=clocks[rank].read(now[rank]))
                    now[rank] += own
            self._meet(step, layer, self.name, now, workers, clocks)
        if self.gather:
            self._meet(step, None, GATHER, now, workers, clocks)
        for rank, worker in workers.items():
            open_steps[rank].__exit__(None, None, None)
            for layer in range(self.layers):
                worker.counts(step, layer, [2, 2, 1, 1])

    def _meet(
        self, step: int, layer: int | None, name: str, now: dict[int, int], workers: dict[int, Process],
        clocks: dict[int, Clock],
    ) -> None:  # fmt: skip
        start, last = dict(now), max(now.values())
        for rank, worker in workers.items():
            now[rank] = last + self.tail_ns(step, -1 if layer is None else layer, rank)
            at = clocks[rank].read(start[rank])
            ns = clocks[rank].read(now[rank]) - at
            if layer is not None and self.ranged:
                with worker.phase("collective", layer):
                    worker.kernel(ns, name, start=at)
            else:
                worker.kernel(ns, name, start=at)
        wait = {rank: last - begun for rank, begun in start.items()}
        self.met.append(Meeting(step, layer, name, start, wait, {rank: now[rank] - last for rank in start}))


#: Columns of moe_collectives that :func:`expected` gives.
SPLIT = ("step", "layer_idx", "kernel_name", "rank", "wait_ns", "transfer_ns", "last_rank")


def expected(met: list[Meeting], ranks: set[int] | None = None) -> list[tuple[str, ...]]:
    """Rows of SPLIT, in the file's order."""
    rows = []
    for one in sorted(met, key=lambda m: (m.step, m.layer is None, m.layer or 0, m.name)):
        for rank in sorted(one.start):
            if ranks is None or rank in ranks:
                split = (one.wait[rank], one.transfer[rank], one.last_rank)
                layer = "" if one.layer is None else str(one.layer)
                rows.append((str(one.step), layer, one.name, str(rank), *map(str, split)))
    return rows


def uneven(step: int, layer: int, rank: int) -> int:
    """A rank's own work: no two ranks and layers alike."""
    return 5000 + 700 * rank + 300 * ((step + 2 * layer + 3 * rank) % 5)


def not_split(found: Written) -> dict[str, int]:
    """Kernels that could not be split, by reason, as the document counts them; the table must agree."""
    said = {one["reason"]: one["kernels"] for one in found.json("moe_straggler")["collectives"]["not_split"]}
    rows = [reason for (reason,) in found.rows("moe_collectives", "reason") if reason]
    assert said == {reason: rows.count(reason) for reason in set(rows)}
    return said
