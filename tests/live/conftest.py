"""What tests of live metrics share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from nvtxmoe.capture.log import logger


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Warnings of nvtxmoe while the test runs."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                found.append(record.getMessage())

    handler = Keep()
    logger().addHandler(handler)
    yield found
    logger().removeHandler(handler)
