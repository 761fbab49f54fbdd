"""Fixtures that tests of exporting reports share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.nsys_stand_in import STAND_IN, StandIn, make_report


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "nsys.py").write_text(STAND_IN)
    (folder / "nsys").write_text(f'#!/bin/sh\n"{sys.executable}" "{folder}/nsys.py" "$@"\n')
    (folder / "nsys").chmod(0o755)
    made = StandIn(folder)
    made.does()
    return made


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return make_report(tmp_path / "reports" / "run 1.nsys-rep")
