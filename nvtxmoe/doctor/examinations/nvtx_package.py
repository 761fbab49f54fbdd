"""The nvtx package, which capture imports in either mode."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Installed

ORDER = 50


def diagnose(context: Context) -> Iterator[Finding]:
    """The nvtx package of the Python that serves."""
    yield from nvtx(context.installed)


def nvtx(found: Installed) -> Iterator[Finding]:
    """The nvtx package, which capture imports in either mode."""
    if found.nvtx is None or "nvtx" not in found.versions:
        yield Finding(
            "nvtx",
            PROBLEM if found.vllm else NOTE,
            f"{found.path} has no nvtx",
            f"Run {found.path} -m pip install nvtx",
        )
    else:
        yield Finding("nvtx", OK, found.versions["nvtx"])
