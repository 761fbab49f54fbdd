"""Nsight Systems: there, and recording what this nvtx emits."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import Finding

ORDER = 60


def diagnose(context: Context) -> Iterator[Finding]:
    """nsys, what it recorded of a trial, and the encoding of payloads."""
    yield from context.under_nsys.findings
