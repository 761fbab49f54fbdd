"""Reports of one run, a rank each, and paths that do something when a worker looks at them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.task import Task
from tests.support.export_builder import Export, simple_run


class Deadly(type(Path())):  # type: ignore[misc]  # the class of paths of this system
    """A path that kills the process that looks at it, as long as a file beside it holds deaths to die."""

    def is_dir(self) -> bool:
        left = Path(f"{self}.deaths")
        deaths = int(left.read_text())
        if deaths:
            left.write_text(str(deaths - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return bool(super().is_dir())


class Slow(type(Path())):  # type: ignore[misc]
    """A path at which whoever looks at it waits, having told its process id in a file beside it."""

    def is_dir(self) -> bool:
        Path(f"{self}.pid").write_text(str(os.getpid()))
        time.sleep(3600)
        return False


def reports(folder: Path, ranks: int = 4, *, named: str = "rank{}.sqlite") -> list[Path]:
    """Exports of a data-parallel run, a rank each; later ranks have more steps, and fewer idle batches."""
    paths = []
    for rank in range(ranks):
        export = Export()
        meta = {"dp_rank": rank, "dp_size": ranks, "model": "a/model"}
        worker = simple_run(export, pid=100 + rank, rank=rank, world_size=ranks, steps=3 + rank, meta=meta)
        for _ in range(ranks - 1 - rank):
            with worker.range("moe.idle"):
                pass
        paths.append(export.save(folder / named.format(rank)))
    return paths


def deadly(path: Path, deaths: int) -> Deadly:
    """The path as one at which so many processes die."""
    Path(f"{path}.deaths").write_text(str(deaths))
    return Deadly(path)


def tasks(paths: list[Path]) -> list[Task]:
    return [Task(path, path, Selection()) for path in paths]
