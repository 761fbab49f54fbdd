"""The settings of capture in force."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import Finding

ORDER = 80


def diagnose(context: Context) -> Iterator[Finding]:
    """Settings, where each comes from, and what is wrong with them."""
    yield from context.settings_findings
