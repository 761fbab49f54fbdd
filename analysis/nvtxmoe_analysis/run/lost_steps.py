"""Which step numbers a run must have and lacks.

Each process numbers its batches from 0, idle batches too. Ranks of one engine (tensor and pipeline parallel) run the
same batches, and so do vLLM's data-parallel engines of a mixture of experts, which run idle batches in lockstep. Of a
process that records in windows (``Meta.windows``), a run must have the steps inside of them only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import polars as pl

from nvtxmoe.formats import schema
from nvtxmoe_analysis.events.meta import Meta
from nvtxmoe_analysis.events.windows import Window, inside
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.selection import ranks_of
from nvtxmoe_analysis.run.idle_steps import idle_steps
from nvtxmoe_analysis.run.parallel_groups import data_parallel_size, ranks_per_engine


@dataclass(frozen=True)
class Gap:
    """Consecutive step numbers that a process lacks.

    Attributes:
        report: position of the report.
        rank: null if neither moe.meta nor an event contains it.
        first, last: step numbers, both inclusive.
        inside: whether the process has steps before and after them; otherwise other ranks have these steps.
    """

    report: int
    pid: int
    rank: int | None
    first: int
    last: int
    inside: bool

    @property
    def steps(self) -> int:
        """Number of steps lost."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class LostSteps:
    """Steps that a run must have and lacks.

    Attributes:
        gaps: by rank and number.
        processes: how many processes have numbered steps.
        compared: how many processes were compared with another of their group.
        begins_at: the first step of the capture, if a capture window cut the steps before it on all ranks, and not a
            window of a running server alone; else null.
        shared: first and last step that every compared rank of the capture has; null if there is none.
        idle_unknown: ranks with idle batches that are not in the input, or with a step whose number is lost: a missing
            number may be one of these.
        windows: of the processes that recorded in windows, without repeats.
    """

    gaps: tuple[Gap, ...]
    processes: int
    compared: int
    begins_at: int | None
    shared: tuple[int, int] | None
    idle_unknown: tuple[int, ...]
    windows: tuple[Window, ...] = ()

    @property
    def steps(self) -> int:
        """Number of (rank, step) lost."""
        return sum(gap.steps for gap in self.gaps)


@dataclass(frozen=True)
class _Process:
    """The step numbers of one process; ``first`` and ``last`` are null without any, ``open_end`` after a kill."""

    report: int
    pid: int
    rank: int | None
    meta: Meta | None
    first: int | None
    last: int | None
    idle_known: bool
    open_end: bool

    @property
    def windows(self) -> tuple[Window, ...]:
        return () if self.meta is None else self.meta.windows


def lost_steps(reports: Sequence[CaptureFacts]) -> LostSteps:
    """Find the steps that ranks lack: holes in their numbers, and steps that only other ranks of their group have.

    A capture window of nsys may cut the same steps at the beginning and end of all ranks; these are not lost. A journal
    begins with step 0, or with its window. The last steps of a process that was killed are not counted here.
    """
    processes: list[_Process] = []
    gaps: list[Gap] = []
    for position, report in enumerate(reports):
        of_report, holes = _of_report(position, report)
        processes += of_report
        gaps += holes
    groups = _groups(processes)
    shared: list[tuple[int, int]] = []
    begins: list[int] = []
    for group in groups:
        begin = min(process.first for process in group if process.first is not None)
        end = max(process.last for process in group if process.last is not None)
        begins.append(begin)
        gaps += [gap for process in group for gap in _ends(process, begin, end)]
        shared.append(
            (
                max(end + 1 if process.first is None else process.first for process in group),
                min(begin - 1 if process.last is None else process.last for process in group),
            )
        )
    common = (max(first for first, _ in shared), min(last for _, last in shared)) if shared else (0, -1)
    known = tuple(sorted({window for process in processes for window in process.windows}, key=lambda window: window[0]))
    first = min(begins, default=0)
    cut = first > 0 and not reports[0].direct and bool(inside(first - 1, first - 1, known))
    return LostSteps(
        gaps=tuple(sorted(gaps, key=lambda gap: (gap.rank is None, gap.rank, gap.report, gap.pid, gap.first))),
        processes=sum(process.first is not None for process in processes),
        compared=sum(len(group) for group in groups if len(group) > 1),
        begins_at=first if cut else None,
        shared=common if common[0] <= common[1] else None,
        idle_unknown=tuple(sorted(process.rank or 0 for process in processes if not process.idle_known)),
        windows=known,
    )


def _of_report(position: int, report: CaptureFacts) -> tuple[list[_Process], list[Gap]]:
    unnumbered = set(report.steps.filter(pl.col("step").is_null())["pid"].to_list())
    steps_seen = pl.concat([report.steps.select("pid", "step").drop_nulls(), idle_steps(report.events)])
    steps_seen = steps_seen.unique().sort("pid", "step").with_columns(before=pl.col("step").shift(1).over("pid"))
    extent = {pid: (first, last) for pid, first, last in _extent(steps_seen).iter_rows()}
    ranks = ranks_of(report.events, report.steps)
    processes = []
    for pid in sorted({*extent, *report.metas}):
        meta = report.metas.get(pid)
        journal = report.events.journals.get(pid)
        first, last = extent.get(pid, (None, None))
        idle_known = pid not in unnumbered and _idle_known(report, meta)
        if journal is not None and first is not None and idle_known:
            first = _begin(_windows(report, pid))
        if first is None and not report.events.ranges.filter(pid=pid, name=schema.IDLE).is_empty():
            continue  # it has idle batches only, whose numbers are unknown
        processes.append(
            _Process(
                position, pid, ranks.get(pid), meta, first, last, idle_known,
                open_end=journal is not None and (journal.truncated or not journal.ended),
            )
        )  # fmt: skip
    known = {process.pid for process in processes if process.idle_known}
    holes = [
        Gap(position, pid, ranks.get(pid), first, last, inside=True)
        for pid, step, before in steps_seen.filter(pl.col("step") > pl.col("before") + 1).iter_rows()
        if pid in known
        for first, last in inside(before + 1, step - 1, _windows(report, pid))
    ]
    if report.direct:
        holes += [
            Gap(position, pid, ranks.get(pid), *part, inside=True)
            for pid, (first, _) in extent.items()
            if first > 0 and pid in known
            for part in inside(0, first - 1, _windows(report, pid))
        ]
    return processes, holes


def _windows(report: CaptureFacts, pid: int) -> tuple[Window, ...]:
    return report.metas[pid].windows if pid in report.metas else ()


def _begin(windows: Sequence[Window]) -> int:
    """Number of the step that a journal begins with."""
    return windows[0][0] if windows else 0


def _extent(steps_seen: pl.DataFrame) -> pl.DataFrame:
    return steps_seen.group_by("pid", maintain_order=True).agg(first=pl.col("step").min(), last=pl.col("step").max())


def _idle_known(report: CaptureFacts, meta: Meta | None) -> bool:
    """Whether the input contains the idle batches of a process, or the process can't have any."""
    if meta is None or data_parallel_size(meta) == 1 or meta.raw.get("vllm") is None:
        return True
    return not report.direct and meta.emits("ranges")


def _groups(processes: Sequence[_Process]) -> list[list[_Process]]:
    """Processes that run the same batches. Those without moe.meta, and of unknown idle batches, are alone."""
    members: dict[Hashable, list[_Process]] = defaultdict(list)
    for process in processes:
        if process.meta is None or not process.idle_known:
            members[process.report, process.pid].append(process)
        elif process.meta.raw.get("vllm") is not None and data_parallel_size(process.meta) > 1:
            members["lockstep"].append(process)
        else:
            members["engine", process.meta.rank // ranks_per_engine(process.meta)].append(process)
    return [group for group in members.values() if any(process.first is not None for process in group)]


def _ends(process: _Process, begin: int, end: int) -> list[Gap]:
    """Steps that other ranks of the group have, before the first and after the last step of this one."""
    if process.first is None or process.last is None:
        parts = [] if process.open_end else [(begin, end)]
    else:
        parts = [(begin, process.first - 1), *([] if process.open_end else [(process.last + 1, end)])]
    return [
        Gap(process.report, process.pid, process.rank, *part, inside=False)
        for first, last in parts
        if first <= last
        for part in inside(first, last, process.windows)
    ]
