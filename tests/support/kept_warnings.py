"""Warnings of nvtxmoe in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from nvtxmoe.capture.log import logger


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """The warnings while it lasts."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    handler = Keep()
    logger().addHandler(handler)
    try:
        yield found
    finally:
        logger().removeHandler(handler)
