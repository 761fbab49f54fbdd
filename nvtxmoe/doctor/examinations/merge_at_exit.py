"""What the merge at the end of a run in direct mode imports, in the Python that serves."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, Finding
from nvtxmoe.doctor.probe import Installed

ORDER = 55


def diagnose(context: Context) -> Iterator[Finding]:
    """Whether a run in direct mode can merge its journals when it ends."""
    if context.settings.mode not in ("nsys", "live"):
        yield from merge(context.installed)


def merge(installation: Installed) -> Iterator[Finding]:
    """Whether that Python has what the merge imports."""
    if installation.vllm is not None and installation.merge_lacks:
        packages = ", ".join(installation.merge_lacks)
        yield Finding(
            "merge",
            NOTE,
            f"{installation.path} has no {packages}: a run in direct mode leaves its journals unmerged",
            f"Run {installation.path} -m pip install {' '.join(installation.merge_lacks)}, or `nvtxmoe merge SESSION` "
            "after the run",
        )
