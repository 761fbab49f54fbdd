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


def nvtx(installation: Installed) -> Iterator[Finding]:
    """The nvtx package, which capture imports in either mode."""
    if installation.nvtx is None or "nvtx" not in installation.versions:
        yield Finding(
            "nvtx",
            PROBLEM if installation.vllm else NOTE,
            f"{installation.path} has no nvtx",
            f"Run {installation.path} -m pip install nvtx",
        )
    else:
        yield Finding("nvtx", OK, installation.versions["nvtx"])
