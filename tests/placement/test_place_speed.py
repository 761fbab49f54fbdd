"""The benchmark of ``nvtxmoe place`` runs, and finds the cost that it planted."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import ROOT


def test_the_benchmark_finds_what_it_planted() -> None:
    size = ["--steps", "300", "--layers", "4", "--experts", "64", "--ranks", "4", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "place_speed.py"), *size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("| 4 x 64 x 300, 4 |"))
    fitted, planted = (float(number) for number in row.split("|")[-2].split(","))
    assert abs(fitted / planted - 1) < 0.03
