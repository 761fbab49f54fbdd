#!/usr/bin/env python3
"""Measures nvtxmoe on all GPUs of one host, with one command: captures, exact counts, placements, cost, analysis.

    python scripts/gpu/many_gpus.py OUT                           # all GPUs; this Python has vLLM
    python scripts/gpu/many_gpus.py OUT --python /vllm/bin/python --gpus 8
    python scripts/gpu/many_gpus.py OUT --only counts placement   # again, or in parts
    python scripts/gpu/many_gpus.py OUT --dry-run                 # the commands and their time limits
    python scripts/gpu/many_gpus.py OUT --small --python .venv-vllm/bin/python     # a try-out with two ranks on CPUs

Runs stages one after the other and goes on when one fails. Each stage has a folder in OUT for its results and logs, and
a time limit. Prints one line per stage and writes OUT/summary.json and OUT/summary.md after each. Exits with 1 if a
stage did not pass. Needs vLLM, Nsight Systems, and nvtxmoe with its analysis, psutil and distributed in the Python that
runs this script. Downloads nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

from scripts.gpu.many_gpus_plan import Setup, Stage, stages  # noqa: E402

PASSED, DIFFERS, FAILED, TIMED_OUT, NOT_RUN = "passed", "not passed", "failed", "timed out", "not run"
#: Seconds between a request to end (SIGINT) and force: `nvtxmoe profile` still writes its report.
GRACE_S = 60.0
POLL_S = 0.5
#: Prints the GPUs, the driver and the packages of the Python that has vLLM.
MACHINE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from scripts.gpu.check_all import machine
print(json.dumps(machine()))
"""


def machine(python: str) -> dict[str, Any]:
    """Return the GPUs, the driver and the packages of a Python.

    Raises:
        OSError, subprocess.SubprocessError: it does not run.
    """
    command = [python, "-c", MACHINE, str(ROOT)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def run(command: Iterable[str], env: dict[str, str], log: Path, limit_s: float) -> int | None:
    """Run a command with its output in a file, and end it and all that it started after ``limit_s``.

    Returns:
        Its status; None if it was ended.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(
            list(command), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    seen: set[psutil.Process] = set()
    try:
        if _waited(child, seen, limit_s):
            return child.returncode
        os.killpg(child.pid, signal.SIGINT)
        _waited(child, seen, GRACE_S)
        return None
    finally:
        for process in [*seen, psutil.Process(child.pid)] if child.poll() is None else seen:
            with suppress(psutil.Error):
                process.kill()
        child.wait()


def _waited(child: subprocess.Popen[bytes], seen: set[psutil.Process], limit_s: float) -> bool:
    """Wait, and note all descendants: some get a session of their own, and the GPU's memory must be free afterwards."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if child.poll() is not None:
            return True
        with suppress(psutil.Error):
            seen.update(psutil.Process(child.pid).children(recursive=True))
        time.sleep(POLL_S)
    return child.poll() is not None


def run_stage(stage: Stage, setup: Setup, limit_s: float) -> dict[str, Any]:
    """Run one stage in a new folder and return its result."""
    folder = setup.out / stage.name
    missing = [file for file in stage.needs if not file.exists()]
    if missing:
        return _result(stage, NOT_RUN, f"an earlier stage did not leave {missing[0]}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    broken = None
    for number, command in enumerate(stage.commands, 1):
        log = folder / f"{number}.log"
        left_s = limit_s - (time.monotonic() - began)
        status = run(command, setup.environment(), log, max(0.0, left_s))
        if status is None:
            broken = TIMED_OUT, f"command {number} was ended after {limit_s:.0f} s: {log}"
        elif status:
            broken = FAILED, f"command {number} ended with status {status}: {log}"
        if broken:
            break
    seconds = round(time.monotonic() - began, 1)
    try:
        facts = stage.read()
    except Exception as error:  # whatever a stage left, the next one is run
        (folder / "reading.log").write_text(traceback.format_exc())
        unread = f"no result can be read: {type(error).__name__}: {error}"
        return _result(stage, *(broken or (FAILED, unread)), seconds=seconds)
    if broken:
        return _result(stage, broken[0], f"{broken[1]}; {facts['line']}", seconds=seconds, facts=facts)
    return _result(stage, PASSED if facts["passed"] else DIFFERS, facts["line"], seconds=seconds, facts=facts)


def _result(stage: Stage, status: str, line: str, **more: Any) -> dict[str, Any]:
    commands = [shlex.join(command) for command in stage.commands]
    return {"name": stage.name, "what": stage.what, "status": status, "line": line, **more, "commands": commands}


def earlier_results(setup: Setup) -> dict[str, dict[str, Any]]:
    """Return results of stages that an earlier run with the same ranks left in OUT, by name."""
    with suppress(OSError, ValueError):
        document = json.loads((setup.out / "summary.json").read_text())
        if (document["ranks"], document["small"]) == (setup.ranks, setup.small):
            return {result["name"]: result for result in document["stages"]}
    return {}


def write_summary(setup: Setup, facts: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Write OUT/summary.json and OUT/summary.md."""
    document = {"machine": facts, "ranks": setup.ranks, "small": setup.small, "stages": results}
    (setup.out / "summary.json").write_text(json.dumps(document, indent=1, default=str) + "\n")
    gpus = f"{setup.ranks} ranks on CPUs, a try-out" if setup.small else f"{setup.ranks} x {facts['gpus'][0]}"
    versions = ", ".join(f"{name} {facts[name]}" for name in ("vllm", "torch", "triton", "driver") if facts[name])
    rows = []
    for result in results:
        cells = [result["name"], result["what"], result["status"], f"{result.get('seconds', 0):.0f}", result["line"]]
        rows.append(f"| {' | '.join(cells)} |")
    head = ["| stage | what it shows | status | seconds | result |", "| --- | --- | --- | --- | --- |"]
    (setup.out / "summary.md").write_text("\n".join([f"{gpus}, {facts['date']}: {versions}.", "", *head, *rows, ""]))


def show_plan(chosen: list[Stage], limits_s: list[float], *, commands: bool) -> None:
    """Print what is run and the time that it may take."""
    for stage, limit_s in zip(chosen, limits_s, strict=True):
        print(f"{stage.name:<14} at most {limit_s / 60:>3.0f} min: {stage.what}")
        for command in stage.commands if commands else ():
            print(f"    {shlex.join(command)}")
    print(f"all stages: at most {sum(limits_s) / 60:.0f} min", flush=True)


def main() -> int:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--gpus", type=int, metavar="N", help="Ranks, a GPU each: 2, 4 or 8. Default: all GPUs.")
    parser.add_argument("--python", default=sys.executable, help="The Python that has vLLM. Default: this one.")
    parser.add_argument("--nsys", default=os.environ.get("NVTXMOE_NSYS", "nsys"), help="Default: $NVTXMOE_NSYS, nsys.")
    parser.add_argument("--only", nargs="+", metavar="STAGE")
    parser.add_argument("--limit-factor", type=float, default=1.0, help="Makes each stage's time limit longer.")
    parser.add_argument("--dry-run", action="store_true", help="Print the commands; run nothing.")
    parser.add_argument("--small", action="store_true", help="Two ranks of a tiny model on CPUs, to try the stages.")
    options = parser.parse_args()
    if not 0 < options.limit_factor < math.inf:
        parser.error(f"--limit-factor {options.limit_factor}: a number above 0 is needed")
    if shutil.which(options.python) is None:
        parser.error(f"no Python at {options.python}: name the one that has vLLM with --python")
    facts = machine(options.python)
    default = 2 if options.small else len(facts["gpus"])
    ranks = default if options.gpus is None else options.gpus
    if ranks not in (2, 4, 8):
        parser.error(f"{ranks} GPUs: 2, 4 or 8 are needed (--gpus N)")
    nsys = shutil.which(options.nsys)
    if nsys is None:
        parser.error(f"no nsys at {options.nsys}: install Nsight Systems, or name one with --nsys")
    python = str(Path(shutil.which(options.python) or options.python).absolute())
    setup = Setup(options.out.resolve(), ranks, python, str(Path(nsys).absolute()), options.small)
    known = stages(setup)
    if unknown := set(options.only or ()) - {stage.name for stage in known}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}: {', '.join(stage.name for stage in known)}")
    chosen = [stage for stage in known if options.only is None or stage.name in options.only]
    limits_s = [stage.limit_s * options.limit_factor for stage in chosen]
    show_plan(chosen, limits_s, commands=options.dry_run)
    if options.dry_run:
        return 0
    if setup.out.is_dir() and any(setup.out.iterdir()) and not (setup.out / "summary.json").exists():
        parser.error(f"{setup.out} holds other files, and stages empty their folders: name a new folder")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup it is ignored, by commands as well
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that commands are ended, too
    setup.out.mkdir(parents=True, exist_ok=True)
    results = earlier_results(setup)
    write_summary(setup, facts, list(results.values()))
    for stage, limit_s in zip(chosen, limits_s, strict=True):
        result = results[stage.name] = run_stage(stage, setup, limit_s)
        seconds = f"{result.get('seconds', 0):.0f} s"
        print(f"{stage.name:<14} {result['status']:<10} {seconds:>7}  {result['line']}", flush=True)
        write_summary(setup, facts, [results[stage.name] for stage in known if stage.name in results])
    return int(any(results[stage.name]["status"] != PASSED for stage in chosen))


if __name__ == "__main__":
    sys.exit(main())
