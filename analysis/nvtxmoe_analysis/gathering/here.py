"""Reading reports one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvtxmoe_analysis.gathering.task import Outcome, Task, attempt
from nvtxmoe_analysis.progress import Progress


def run(tasks: Sequence[Task], progress: Progress, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Read reports; ``done`` is called with each outcome."""
    outcomes = []
    for task in tasks:
        outcomes.append(attempt(task, progress))
        done(outcomes[-1])
    return outcomes
