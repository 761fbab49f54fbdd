"""Waiting for what will happen, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 2400


def wait_until(holds: Callable[[], object]) -> None:
    """Look again and again."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain"
        time.sleep(0.02)
