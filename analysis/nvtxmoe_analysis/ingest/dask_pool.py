"""Reading reports on a Dask cluster that runs already.

Its workers need nvtxmoe, of this version and with the same polars, and to see the reports at the paths that they have
here. They are given one report each at a time, and facts are fetched as they come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import polars as pl

from nvtxmoe._version import __version__
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.ingest.task import Failure, Outcome, Task, attempt, described

#: How long a scheduler, and then its first worker, may take to answer.
CONNECT_S = 20
#: How often to look whether the scheduler is there, while nothing ends.
LOOK_S = 1


def run(tasks: Sequence[Task], address: str, jobs: int | None, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Read reports on the cluster of the scheduler at this address, ``jobs`` at a time (default: one a worker).

    Parameters:
        done: called with each outcome, in the order in which they come.

    Returns:
        Outcomes in the order of the tasks.

    Raises:
        NvtxmoeError: distributed is not installed, nobody answers, or the workers have another nvtxmoe.
    """
    with _connected(address) as client:
        workers = _check_workers(client, address)
        return _map(client, tasks, jobs or workers, done)


def _map(client: Any, tasks: Sequence[Task], at_once: int, done: Callable[[Outcome], None]) -> list[Outcome]:
    import distributed  # noqa: PLC0415  optional

    outcomes: dict[int, Outcome] = {}
    left = deque(enumerate(tasks))
    running: dict[Any, int] = {}
    lost = "the Dask scheduler was lost before it was read. Look why it ended, and run again"
    seen = time.monotonic()
    while left or running:
        while left and len(running) < at_once:
            i, task = left.popleft()
            running[client.submit(attempt, task, pure=False)] = i
        try:
            finished = distributed.wait(list(running), timeout=LOOK_S, return_when="FIRST_COMPLETED").done
        except distributed.TimeoutError:
            finished = set()
        except CancelledError:
            break
        for future in finished:
            i = running.pop(future)
            outcomes[i] = _outcome(future, tasks[i])
            future.release()  # the worker need not keep the facts
            done(outcomes[i])
        if client.status != "running":
            break
        workers = client.scheduler_info()["workers"].values()
        if client.status != "running":  # it asks the scheduler, and may have waited for one that is gone
            break
        if any(_at_work(worker) for worker in workers):
            seen = time.monotonic()
        elif time.monotonic() - seen > CONNECT_S:  # new ones may come, as where a batch system starts them again
            lost = (
                "all Dask workers are paused, for want of memory. Give them more"
                if workers
                else "no Dask worker was left to read it. Look why they ended, and run again"
            )
            break
    return [outcomes.get(i) or Failure(task.source, f"{task.source}: {lost}", 1) for i, task in enumerate(tasks)]


def _at_work(worker: Mapping[str, Any]) -> bool:
    """Whether a worker takes tasks, or works on one: it takes none while its memory is nearly full."""
    executing = worker.get("metrics", {}).get("task_counts", {}).get("executing", 0)
    return bool(worker.get("status", "running") == "running" or executing)


def _outcome(future: Any, task: Task) -> Outcome:
    import distributed  # noqa: PLC0415  optional

    try:
        outcome: Outcome = future.result()
    except distributed.KilledWorker as error:
        return Failure(
            task.source,
            f"{task.source}: the worker that read it died each time, for want of memory most likely. Give workers more "
            "memory",
            error.allowed_failures + 1,
        )
    except Exception as error:
        return Failure(task.source, described(error, task.source), 1)
    return outcome


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        import distributed  # noqa: PLC0415  optional
    except ImportError as error:
        raise NvtxmoeError(
            f"--dask needs a package that is not installed: {error}", remedy="Run `pip install distributed`"
        ) from error
    # It tells of lost connections at length; what matters of them is an error of ours.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_S)
    except Exception as error:  # it raises much: TypeError without TLS set up, AssertionError where time is short
        raise NvtxmoeError(
            f"no Dask scheduler answers: {str(error) or type(error).__name__}",
            where=address,
            remedy="Give its address, as `dask scheduler` prints it: tcp://HOST:8786",
        ) from error
    with client:
        yield client


def _check_workers(client: Any, address: str) -> int:
    """How many workers there are, all of them with what is needed."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except asyncio.TimeoutError as error:
        raise NvtxmoeError(
            "the Dask cluster has no worker", where=address, remedy=f"Start some: `dask worker {address}`"
        ) from error
    try:
        by_worker: dict[str, tuple[str, str]] = client.run(versions)
    except Exception as error:
        raise NvtxmoeError(
            f"the workers of the Dask cluster can't run nvtxmoe: {' '.join(str(error).split())}",
            where=address,
            remedy=f"Install nvtxmoe {__version__} in their environment",
        ) from error
    for worker, (version, polars) in by_worker.items():
        if (version, polars) != versions():
            raise NvtxmoeError(
                f"a worker has nvtxmoe {version} with polars {polars}; here are {__version__} and {pl.__version__}",
                where=worker,
                remedy="Install the same in both",
            )
    return len(by_worker)


def versions() -> tuple[str, str]:
    """Versions of what decides the numbers: nvtxmoe and polars."""
    return __version__, pl.__version__
