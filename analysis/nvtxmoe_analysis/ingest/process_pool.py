"""Reading reports in processes of this machine.

Each worker is a pool of one process: when that is killed, for want of memory above all, it is known which report it
was reading, the others lose nothing, and a new process tries that report again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context, parent_process, resource_tracker
from types import FrameType

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.malloc import keep_low
from nvtxmoe_analysis.ingest.memory_budget import cores
from nvtxmoe_analysis.ingest.task import MOST_ATTEMPTS, Failure, Outcome, Task, attempt

#: The size of polars' own pool of threads, which it reads when it first works.
POLARS_THREADS = "POLARS_MAX_THREADS"
#: How often to look whether somebody interrupts, while nothing ends.
LOOK_S = 0.2
#: How long an interrupted worker may take to clean up before it is killed.
ENDING_S = 3


class StoppedError(Exception):
    """The map is being given up."""


def run(tasks: Sequence[Task], workers: int, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Read reports in so many processes.

    Parameters:
        done: called with each outcome, in the order in which they come.

    Returns:
        Outcomes in the order of the tasks.
    """
    pool = _Workers(max(1, cores() // workers))
    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(workers, "nvtxmoe-worker", initializer=pool.enter) as threads:
        waiting: dict[Future[Outcome], int] = {threads.submit(pool.read, task): i for i, task in enumerate(tasks)}
        try:
            while left := [future for future, i in waiting.items() if i not in outcomes]:
                # Not for ever: another thread may take the signal, and then nothing wakes this one.
                for future in wait(left, LOOK_S, FIRST_COMPLETED).done:
                    outcomes[waiting[future]] = future.result()
                    done(future.result())
        except BaseException:
            for future in waiting:
                future.cancel()
            pool.signal(signal.SIGINT)
            wait(waiting, timeout=ENDING_S)
            pool.signal(signal.SIGKILL)
            raise
        finally:
            threads.shutdown()
            pool.close()
    return [outcomes[i] for i in range(len(tasks))]


class _Workers:
    """A process for each thread that asks for one."""

    def __init__(self, polars_threads: int) -> None:
        self._polars_threads = polars_threads
        self._thread_state = threading.local()
        self._lock = threading.Lock()
        self._processes: dict[int, ProcessPoolExecutor] = {}
        self._stopped = False

    def enter(self) -> None:
        """Begin a thread: processes inherit that SIGINT waits, until they can take it."""
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # else it is started with the first process, and lets SIGINT through
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def read(self, task: Task) -> Outcome:
        """Read a report in the thread's process."""
        for _ in range(MOST_ATTEMPTS):
            pid, process = self._process()
            try:
                return process.submit(_attempt, task).result()
            except BrokenProcessPool:
                self._drop(pid)
        return Failure(
            task.source,
            f"{task.source}: the process that read it ended each time, killed for want of memory most likely. "
            "Give --jobs 1, or a machine with more memory",
            MOST_ATTEMPTS,
        )

    def _process(self) -> tuple[int, ProcessPoolExecutor]:
        worker: tuple[int, ProcessPoolExecutor] | None = getattr(self._thread_state, "process", None)
        if worker is None:
            # Not forked: a fork of a process with threads may hang.
            process = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=(self._polars_threads,))
            try:
                worker = process.submit(os.getpid).result(), process
            except BrokenProcessPool as error:
                if self._stopped:
                    raise StoppedError from error
                raise NvtxmoeError(
                    "a process that reads reports could not be started",
                    remedy="Give --jobs 1; a script of your own has to call it under `if __name__ == '__main__':`",
                ) from error
            self._thread_state.process = worker
            with self._lock:
                self._processes[worker[0]] = process
        if self._stopped:
            raise StoppedError
        return worker

    def _drop(self, pid: int) -> None:
        self._thread_state.process = None
        with self._lock:
            del self._processes[pid]
        if self._stopped:
            raise StoppedError

    def signal(self, number: signal.Signals) -> None:
        """End what is being read. SIGINT lets a worker end an nsys that it runs, and remove half an export."""
        self._stopped = True
        with self._lock:
            for pid in self._processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close(self) -> None:
        """Let the processes end."""
        with self._lock:
            for process in self._processes.values():
                process.shutdown()


def _begin(polars_threads: int) -> None:
    keep_low()
    os.environ[POLARS_THREADS] = str(polars_threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # waiting, there is nothing to clean up
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed can't end its processes, and nobody wants what they read."""
    parent = parent_process()
    if parent is None:
        return
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ENDING_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _attempt(task: Task) -> Outcome:
    signal.signal(signal.SIGINT, _interrupted)
    try:
        return attempt(task)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise KeyboardInterrupt
