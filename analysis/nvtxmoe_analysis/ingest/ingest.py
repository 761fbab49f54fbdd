"""The facts of all reports, and which could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.files import size_bytes
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.memory_budget import workers
from nvtxmoe_analysis.ingest.task import Failure, Outcome, Task, attempt, read


def ingest(
    inputs: Sequence[Path],
    selection: Selection,
    *,
    cache_dir: Path | None = None,
    nsys: Path | None = None,
    jobs: int | None = 1,
    dask: str | None = None,
    progress: Progress,
) -> tuple[list[CaptureFacts], list[Failure]]:
    """Read reports: the facts of those that can be read, in the order of the inputs, and the others.

    Parameters:
        jobs: how many at a time; 1: in this process; None: as many as cores and memory allow, or as the cluster has
            workers.
        dask: address of the scheduler of a Dask cluster that reads them.

    Raises:
        NvtxmoeError: there is one report, or none could be read; or the cluster can't be used.
    """
    if nsys is not None and nsys.exists():  # not a name to look up
        nsys = nsys.absolute()
    tasks = [Task(path, path.absolute(), selection, cache_dir and cache_dir.absolute(), nsys) for path in inputs]
    if len(tasks) == 1 and dask is None:
        return [read(tasks[0], progress)], []
    number = 0
    # The largest first: what is left at the end is short.
    order = sorted(range(len(tasks)), key=lambda i: -size_bytes(inputs[i], unknown=0))
    tasks = [tasks[i] for i in order]

    def done(outcome: Outcome) -> None:
        nonlocal number
        number += 1
        of = "could not be read" if isinstance(outcome, Failure) else "read"
        progress.part(f"{number} of {len(tasks)} reports: {outcome.source.name} {of}", number, len(tasks))

    if dask is not None:
        from nvtxmoe_analysis.ingest import dask_pool  # noqa: PLC0415  distributed is optional

        progress.begin(f"{len(tasks)} reports: connecting to {dask}")
        outcomes = dask_pool.run(tasks, dask, jobs, done)
    elif (number_of_workers := workers(inputs, jobs)) == 1:
        outcomes = run_here(tasks, progress, done)
    else:
        from nvtxmoe_analysis.ingest import process_pool  # noqa: PLC0415  multiprocessing

        progress.begin(f"{len(tasks)} reports: {number_of_workers} at a time")
        outcomes = process_pool.run(tasks, number_of_workers, done)
    outcomes = [outcomes[order.index(i)] for i in range(len(tasks))]
    facts = [outcome for outcome in outcomes if isinstance(outcome, CaptureFacts)]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if not facts:
        first, more = failures[0].error, len(failures) - 1
        raise NvtxmoeError(f"none of {more + 1} reports can be read, the first: {first}" if more else first)
    return facts, failures


def run_here(tasks: Sequence[Task], progress: Progress, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Read reports; ``done`` is called with each outcome."""
    outcomes = []
    for task in tasks:
        outcomes.append(attempt(task, progress))
        done(outcomes[-1])
    return outcomes
