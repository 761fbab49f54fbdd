"""A stand-in for nsys that the tests of plans share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.profile_plans import make_nsys


@pytest.fixture
def nsys(tmp_path: Path) -> Callable[..., Path]:
    """Makes an nsys that answers --version."""
    return partial(make_nsys, tmp_path)
