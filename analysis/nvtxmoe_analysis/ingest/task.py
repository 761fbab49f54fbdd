"""What is done with one report, wherever it is done: read it, and try again where that may help."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts, read_capture
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.readers.nsys_export import REPORT_SUFFIX
from nvtxmoe_analysis.readers.open import open_export

#: How often a report is tried, whatever fails.
MOST_ATTEMPTS = 3
#: Before trying again, this long by the number of the attempt.
PAUSE_S = 0.5

#: Errors of file systems, shared ones above all, that pass.
_PASSING = frozenset(
    {
        *(errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENFILE, errno.EMFILE),
        *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESTALE),
    }
)
#: What SQLite says of the like.
_PASSING_SQLITE = ("disk I/O error", "database is locked", "unable to open database file")


@dataclass(frozen=True)
class Task:
    """A report to read. It is sent to where that is done.

    Attributes:
        source: as the user named it: a .nsys-rep, a SQLite export, a folder of Parquet files, or a session.
        path: where it is, whatever folder a worker was started in.
        cache_dir, nsys: see ``readers.open.open_export``.
    """

    source: Path
    path: Path
    selection: Selection
    cache_dir: Path | None = None
    nsys: Path | None = None


@dataclass(frozen=True)
class Failure:
    """A report that could not be read.

    Attributes:
        error: what was found, where, and what to do.
        attempts: how often it was tried.
    """

    source: Path
    error: str
    attempts: int


Outcome = CaptureFacts | Failure


def read(task: Task, progress: Progress | None = None) -> CaptureFacts:
    """The facts of the report.

    Raises:
        NvtxmoeError: see ``open_export`` and ``read_capture``.
    """
    if progress is not None:
        doing = "exporting with nsys" if task.path.suffix == REPORT_SUFFIX else "opening"
        progress.begin(f"{task.source.name}: {doing}")
    export = open_export(task.path, cache_dir=task.cache_dir, nsys=task.nsys)
    facts = read_capture(export, task.selection, progress)
    export.require_unchanged()
    return replace(facts.to_merge(), source=task.source)


def attempt(task: Task, progress: Progress | None = None) -> Outcome:
    """The facts of the report, or why there are none. What may pass is tried MOST_ATTEMPTS times.

    A fault of this program costs its report, not the others'.
    """
    number = 0
    while True:
        number += 1
        try:
            return read(task, progress)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # the panics of Rust libraries are no Exception
            if number == MOST_ATTEMPTS or not passes(error):
                return Failure(task.source, described(error, task.source), number)
        time.sleep(PAUSE_S * number)


def passes(error: BaseException) -> bool:
    """Whether an error may be gone when the same is done again: of the disk, the network, or a busy database."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _PASSING:
            return True
        if isinstance(cause, sqlite3.OperationalError) and any(text in str(cause) for text in _PASSING_SQLITE):
            return True
    return False


def described(error: BaseException, source: Path) -> str:
    """An error as one line for people."""
    if isinstance(error, NvtxmoeError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or source}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return f"{source}: there is not enough memory to read it. Give --jobs 1, or a machine with more"
    message = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{source}: internal error, {message}. Analyse it alone with --debug and report it"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
