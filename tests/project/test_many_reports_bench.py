"""scripts/bench/many_reports.py: numbers of processes, tiled and given reports, and the figures as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT


def measured(out: Path, *words: object) -> tuple[dict[str, Any], str]:
    """Figures and Markdown of one repetition without Dask."""
    script = ROOT / "scripts" / "bench" / "many_reports.py"
    ways = ["--repeats", 1, "--workers", 0, "--jobs", 1, 2, "--folder", out, "--out", out / "figures.json"]
    command = [sys.executable, script, *words, *ways]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads((out / "figures.json").read_text())
    return figures, done.stdout


@pytest.mark.slow
def test_numbers_of_processes_are_measured_on_tiled_and_on_given_reports(tmp_path: Path) -> None:
    figures, text = measured(tmp_path / "tiled", "--reports", 2, "--kernels", 3000)
    ways = [way["name"] for way in figures["ways"]]
    assert ways == ["each alone, summed", "--jobs 1", "--jobs 2"]
    assert all(way["median_wall_s"] == way["runs"][0]["wall_s"] > 0 for way in figures["ways"])
    assert figures["equal"].startswith("Equal to the truth: cells ")
    assert all(f"| {way} |" in text for way in ways)
    reports = [tmp_path / "tiled" / f"rank{rank}" / "tiled.sqlite" for rank in range(2)]
    figures, _ = measured(tmp_path / "given", "--given", *reports)
    assert (figures["reports"], figures["equal"]) == (2, "All ways gave the same files.")
    assert figures["sqlite_bytes"] == sum(report.stat().st_size for report in reports)
