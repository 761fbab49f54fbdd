"""scripts/gpu/golden_captures.py: what it runs, and what it keeps of a report."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.gpu import golden_captures
from scripts.gpu.golden_captures import CAPTURES, LOAD, environment, profile_command, trimmed_export
from tests.support import fakes

EXPORTS = """
for word; do case $word in --output=*) echo whole > "${word#--output=}";; esac; done
"""


@pytest.mark.parametrize("name", CAPTURES)
def test_what_profile_would_run(name: str, nsys_path: Path, tmp_path: Path) -> None:
    command = profile_command(sys.executable, tmp_path / "run", str(nsys_path), CAPTURES[name])
    before, after = command.index("profile") + 1, command.index("--")
    dry = [*command[:before], "--dry-run", *command[before:]]
    done = subprocess.run(dry, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " ".join(command[after + 1 :]) in done.stdout
    assert set(LOAD) <= set(command)


@pytest.mark.slow
def test_a_report_that_cannot_be_trimmed_is_exported_whole(tmp_path: Path) -> None:
    report, target = tmp_path / "report.nsys-rep", tmp_path / "out.sqlite"
    report.write_bytes(b"not a report")
    nsys = fakes.executable(tmp_path / "nsys", EXPORTS)
    assert trimmed_export(report, target, str(nsys), 60.0) == (target, False)
    assert target.read_text() == "whole\n"
    with pytest.raises(RuntimeError, match="ended with status 9"):
        trimmed_export(report, target, str(fakes.executable(tmp_path / "bad", "exit 9")), 60.0)


def test_one_failure_does_not_stop_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CAPTURES

    def command(python: str, folder: Path, nsys: str | None, words: tuple[str, ...]) -> list[str]:
        made = f"mkdir -p {folder}; echo x > {folder}/report.nsys-rep" if words == CAPTURES[second] else "exit 5"
        return ["sh", "-c", f"echo began; {made}"]

    monkeypatch.setattr(golden_captures, "profile_command", command)
    nsys = str(fakes.executable(tmp_path / "nsys", EXPORTS))
    assert golden_captures.make(tmp_path / "out", python="python", nsys=nsys, budget_s=120.0) == 1
    bad, good = json.loads((tmp_path / "out" / "golden.json").read_text())
    assert (bad["name"], "left no report" in bad["error"]) == (first, True)
    assert (good["name"], good["small"], good["trimmed"]) == (second, True, False)
    assert lzma.decompress((tmp_path / "out" / f"{second}.sqlite.xz").read_bytes()) == b"whole\n"
    assert lzma.decompress((tmp_path / "out" / f"{first}.log.xz").read_bytes()) == b"began\n"


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        assert golden_captures.run_whole(["sleep", "600"], log, 0.5) == -9
