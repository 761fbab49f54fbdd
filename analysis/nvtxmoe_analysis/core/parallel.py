"""Work on several parts at once. The heavy calls of numpy, polars, Arrow and connectorx leave the interpreter free."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: More would only hold more parts in memory: reading them is not faster.
MOST_WORKERS = 4

_thread = threading.local()


def ordered_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` of each item in order, computed by threads while the next items are read.

    No more items are in memory than there are threads, and one that is being read. Within such a thread there are no
    further ones: they would share the same cores, and each keeps memory of its own.
    """
    if getattr(_thread, "works", False):
        yield from map(function, items)
        return
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="nvtxmoe", initializer=_begin) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            while len(waiting) >= workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin() -> None:
    _thread.works = True


#: Cells worked on at a time, so that wide matrices need little memory.
CHUNK = 1 << 15
