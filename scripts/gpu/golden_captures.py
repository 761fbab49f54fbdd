"""Two captures under nsys, of gpt-oss in MXFP4 and of a model in fp8, small enough to be kept with the tests."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nvtxmoe.profile.nsys_command import REPORT_FILE

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ROOT / "scripts" / "gpu" / "offline.py"
#: About 40 steps.
LOAD = ("--requests", "12", "--max-tokens", "34")
CAPTURES: dict[str, tuple[str, ...]] = {
    "h200-vllm-gpt-oss-capture": ("--family", "gpt_oss", "--quantisation", "mxfp4", *LOAD),
    "h200-vllm-fp8-capture": ("--quantisation", "fp8", *LOAD),
}
#: Largest file that goes with the tests.
MOST_BYTES = 3_000_000


def make(out: Path, *, python: str, nsys: str | None, budget_s: float) -> int:
    """Make the captures, one after the other, and write OUT/golden.json. Return an exit status.

    Parameters:
        python: that has vLLM.
        nsys: the nsys to use; default: the one that `nvtxmoe profile` finds.
        budget_s: seconds for everything; a capture that has not ended by then is ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + budget_s
    results = []
    for number, (name, words) in enumerate(CAPTURES.items()):
        limit_s = (ends - time.monotonic()) / (len(CAPTURES) - number)
        try:
            result = capture(out, name, words, python=python, nsys=nsys, limit_s=limit_s)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            result = {"name": name, "error": f"{type(error).__name__}: {error}"}
        results.append(result)
        (out / "golden.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(json.dumps(result), flush=True)
    return int(any("error" in result for result in results))


def environment() -> dict[str, str]:
    """Variables of nvtxmoe and of vLLM."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH", ""))))
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    return {**os.environ, **quiet, "PYTHONPATH": path}


def profile_command(python: str, folder: Path, nsys: str | None, words: tuple[str, ...]) -> list[str]:
    """`nvtxmoe profile` of the offline script."""
    nsys_options = ["--nsys", nsys] if nsys else []
    options = ["-o", str(folder), "--log-interval", "4", "--no-analyze", *nsys_options]
    return [sys.executable, "-m", "nvtxmoe", "profile", *options, "--", python, str(OFFLINE), *words]


def capture(
    out: Path, name: str, words: tuple[str, ...], *, python: str, nsys: str | None, limit_s: float
) -> dict[str, Any]:
    """Make one capture: OUT/NAME.sqlite.xz, trimmed where this Python can, and OUT/NAME.log.xz.

    Raises:
        RuntimeError: there is no report, or it cannot be exported.
        subprocess.SubprocessError: a step took too long.
    """
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="golden-"))
    log, report = scratch / "log", scratch / "run" / REPORT_FILE
    try:
        with log.open("wb") as file:
            status = run_whole(profile_command(python, scratch / "run", nsys, words), file, limit_s)
        if status and not report.exists():
            raise RuntimeError(f"nvtxmoe profile ended with status {status} and left no report")
        left_s = max(60.0, limit_s - (time.monotonic() - began))
        export, trimmed = trimmed_export(report, scratch / f"{name}.sqlite", nsys, left_s)
        packed = lzma.compress(export.read_bytes(), preset=6)
        (out / f"{name}.sqlite.xz").write_bytes(packed)
    finally:
        if log.exists():
            (out / f"{name}.log.xz").write_bytes(lzma.compress(log.read_bytes()[-500_000:]))
        shutil.rmtree(scratch, ignore_errors=True)
    small = len(packed) <= MOST_BYTES
    seconds = round(time.monotonic() - began, 1)
    return {
        "name": name,
        "status": status,
        "bytes": len(packed),
        "small": small,
        "trimmed": trimmed,
        "seconds": seconds,
    }


def run_whole(command: list[str], log: Any, limit_s: float) -> int:
    """Run a command; end it and everything that it started after ``limit_s``. Return its status, -9 when ended."""
    process = subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return -9


def trimmed_export(report: Path, target: Path, nsys: str | None, limit_s: float) -> tuple[Path, bool]:
    """Export a report to SQLite with only what the analysis reads; whole where nvtxmoe's analysis cannot run.

    Returns:
        The file, and whether it is trimmed.

    Raises:
        RuntimeError: neither works.
    """
    nsys_options = ["--nsys", nsys] if nsys else []
    trim = [sys.executable, "-m", "nvtxmoe", "trim", str(report), str(target), *nsys_options]
    done = subprocess.run(trim, env=environment(), capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode == 0:
        return target, True
    print(f"trim: {done.stderr.strip()[-400:]}", flush=True)
    export = [nsys or "nsys", "export", "--type=sqlite", "--include-blobs=true", "--force-overwrite=true"]
    trimmed = subprocess.run(
        [*export, f"--output={target}", str(report)], capture_output=True, text=True, timeout=limit_s, check=False
    )
    if trimmed.returncode or not target.exists():
        raise RuntimeError(f"nsys export ended with status {trimmed.returncode}: {trimmed.stderr.strip()[-400:]}")
    return target, False
