"""scripts/bench/throughput.py: the turns, the interval, the budget, and processes that fail or take too long."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from scripts.bench import throughput
from scripts.bench.throughput import BARE, PROFILED, STUDENT, compared, finished, in_turn, order


def runs(*rates: tuple[str, float | None]) -> list[dict[str, Any]]:
    return [{"kind": kind} | ({"failed": "x"} if rate is None else {"tokens_per_s": rate}) for kind, rate in rates]


def test_the_kinds_take_turns() -> None:
    assert order(3) == [BARE, PROFILED, PROFILED, BARE, BARE, PROFILED]


def test_the_quantiles_are_those_of_student() -> None:
    assert [round(float(stats.t.ppf(0.975, n)), 3) for n in range(1, 11)] == list(STUDENT)


def test_the_interval_is_that_of_the_ratios() -> None:
    found = compared(runs((BARE, 100), (PROFILED, 99), (PROFILED, 101), (BARE, 100), (BARE, 200), (PROFILED, 196)))
    logs = [math.log(0.99), math.log(1.01), math.log(0.98)]
    low, high = stats.t.interval(0.95, 2, sum(logs) / 3, stats.sem(logs))
    assert found["pairs"] == 3
    assert found["change_pct"] == pytest.approx(100 * math.expm1(sum(logs) / 3), abs=1e-3)
    assert found["change_pct_ci95"] == pytest.approx([100 * math.expm1(low), 100 * math.expm1(high)], abs=0.01)


def test_pairs_that_failed_are_left_out() -> None:
    found = compared(runs((BARE, 100), (PROFILED, None), (PROFILED, 101), (BARE, 100), (BARE, 100)))
    assert (found["pairs"], found["change_pct"], found["change_pct_ci95"]) == (1, pytest.approx(1.0), None)
    assert compared(runs((BARE, None)))["change_pct"] is None


def test_what_is_known_is_written_after_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    written: list[int] = []

    def one(kind: str, *_: Any) -> dict[str, Any]:
        written.append(len(json.loads(out.read_text())["runs"]) if out.exists() else 0)
        return {"kind": kind, "process_s": 50.0, "tokens_per_s": 100.0 if kind == BARE else 99.0}

    monkeypatch.setattr(throughput, "run_one", one)
    options = argparse.Namespace(rounds=3, budget_s=math.inf, out=out, keep=False)
    assert in_turn(options) == 0
    assert written == [0, 1, 2, 3, 4, 5]
    assert json.loads(out.read_text())["change_pct"] == -1.0
    options.budget_s = 54.0  # the first process took 50 s by its own word: no second one
    assert in_turn(options) == 0
    assert "54 s are left, a process takes 50 s" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["runs"]) == 1


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert finished([sys.executable, "-c", program], {}, log, 1.0) == "took more than 1 s"
    assert finished([sys.executable, "-c", "print(1)"], {}, log, 60.0) == 0
    assert log.read_text() == "1\n"
