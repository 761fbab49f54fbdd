"""Tests run with one thread of polars (conftest.py), users with as many as their machine has cores."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from tests.support.cli import analyze, everything_but_its_path, spawn


@pytest.mark.parametrize("capture", ["golden_1gpu", "golden_2gpu"])
def test_the_number_of_threads_changes_nothing(capture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    assert pl.thread_pool_size() == 1
    export, one, several = request.getfixturevalue(capture), tmp_path / "one", tmp_path / "several"
    analyze(export, one)
    ran = spawn("analyze", export, "-o", several, env=os.environ | {"POLARS_MAX_THREADS": "4"})
    assert (ran.code, ran.err) == (0, "")
    assert everything_but_its_path(several) == everything_but_its_path(one)
