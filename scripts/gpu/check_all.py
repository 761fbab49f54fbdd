#!/usr/bin/env python3
"""Runs the matrix of scripts/gpu/cases.py on the GPUs at hand, several cases at a time, and never stops at a failure.

    python scripts/gpu/check_all.py OUT                     # the matrix, in at most 8 minutes
    python scripts/gpu/check_all.py OUT --only qwen3-fp8 gpt-oss-mxfp4
    python scripts/gpu/check_all.py OUT --ranks 8           # instead: expert parallelism over eight GPUs
    python scripts/gpu/check_all.py OUT --golden            # two captures under nsys instead

Writes OUT/results.json after every case, and the end of each case's output to OUT/CASE.log.xz. Prints one line per
case. `scripts/gpu/versions_table.py` makes the table of docs/reference/tested-setups.md of it.
Exits with 1 when a case that ran was not exact. Needs vLLM in the Python that runs it; downloads nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu import golden_captures  # noqa: E402
from scripts.gpu.case_process import CaseProcess, failed, not_run  # noqa: E402
from scripts.gpu.cases import CASES, Case, rank_cases  # noqa: E402

#: Time that is left for the last case's end and the files.
RESERVE_S = 10.0
POLL_S = 0.5


def machine() -> dict[str, Any]:
    """The GPUs, the driver and the packages."""
    facts: dict[str, Any] = {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
    for name in ("vllm", "torch", "triton", "nvtx", "transformers", "flashinfer-python", "numpy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = None
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    facts["gpus"] = [line.split(", ")[0] for line in lines]
    facts["driver"] = lines[0].split(", ")[-1] if lines else None
    return facts


class Driver:
    """The queue, the places on the GPUs and the results.

    Parameters:
        cases: in the order in which they are begun.
        gpus: how many there are.
        jobs: most cases at a time on one GPU.
        budget_s: seconds for everything.
        python: that has vLLM.
    """

    def __init__(
        self, out: Path, cases: Iterable[Case], *, gpus: int, jobs: int, budget_s: float, python: str = sys.executable
    ) -> None:
        self.out = out
        self.waiting = list(cases)
        self.gpus = gpus
        self.jobs = jobs
        self.python = python
        self.machine: dict[str, Any] = {}
        self.results: list[dict[str, Any]] = []
        self.running: list[CaseProcess] = []
        self.load = [0] * gpus
        self.ends = time.monotonic() + budget_s
        self.scratch = Path(tempfile.mkdtemp(prefix="check-all-"))

    def run(self) -> list[dict[str, Any]]:
        """Run every case that fits; results in the order in which they came."""
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            while self.waiting or self.running:
                self._begin()
                time.sleep(POLL_S)
                self._collect()
        finally:
            for process in self.running:
                process.kill()
        return self.results

    def _begin(self) -> None:
        left = self.ends - time.monotonic() - RESERVE_S
        for case in list(self.waiting):
            if case.gpus > self.gpus:
                self._leave_out(case, f"needs {case.gpus} GPUs, there is {self.gpus}")
            elif case.module is not None and find_spec(case.module) is None:
                self._leave_out(case, f"needs the module {case.module}, which is not installed")
            elif left < case.least_s:
                self._leave_out(case, "no time was left")
            else:
                chosen_gpus = sorted(range(self.gpus), key=lambda gpu: self.load[gpu])[: case.gpus]
                if all(self.load[gpu] < self.jobs for gpu in chosen_gpus):
                    self.waiting.remove(case)
                    for gpu in chosen_gpus:
                        self.load[gpu] += 1
                    limit_s = min(case.limit_s, left)
                    self.running.append(CaseProcess(case, sorted(chosen_gpus), limit_s, self.scratch, self.python))
                elif case.gpus > 1:
                    return  # later cases must not keep it waiting for ever

    def _leave_out(self, case: Case, why: str) -> None:
        self.waiting.remove(case)
        self._take(not_run(case, why))

    def _collect(self) -> None:
        for process in list(self.running):
            try:
                result = process.result(self.out)
            except Exception as error:  # one case's files must not end the others
                process.kill()
                result = failed(process.case, f"the driver could not read it: {type(error).__name__}: {error}")
            if result is not None:
                self.running.remove(process)
                for gpu in process.gpus:
                    self.load[gpu] -= 1
                self._take(result)

    def _take(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        text = json.dumps({"machine": self.machine, "cases": self.results}, indent=1)
        part = self.out / "results.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.out / "results.json")
        print(line(result), flush=True)


def line(result: dict[str, Any]) -> str:
    """One line per case."""
    parts = [f"{result['name']:<22}", f"{result['status']:<9}", f"{result.get('seconds', 0):>6.0f} s"]
    for process in result.get("processes", []):
        if "cells" in process:
            recorded = ", ".join(f"{how} {len(layers)}" for how, layers in process["recording"].items())
            kernels = ", ".join(kernel["experts"] or kernel["method"] for kernel in process["kernels"])
            parts.append(
                f"[{process['cells_equal']}/{process['oracle_cells']} cells, "
                f"{process['tokens_equal']}/{process['oracle_tokens']} tokens, {process['tokens_tied']} tied; "
                f"{recorded}; {kernels}]"
            )
    if result.get("why"):
        parts.append(str(result["why"])[:300])
    return " ".join(parts)


def main() -> int:
    """Run the matrix, or make the captures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--only", nargs="+", metavar="CASE")
    parser.add_argument("--ranks", type=int, metavar="N", help="Instead of the matrix: expert parallelism over N GPUs.")
    parser.add_argument("--small", action="store_true", help="With --ranks: tiny cases, which need no GPU.")
    parser.add_argument("--jobs", type=int, default=4, help="Most cases at a time on one GPU.")
    parser.add_argument("--gpus", type=int, help="How many to use. Default: all.")
    parser.add_argument("--budget-s", type=float, default=470.0)
    parser.add_argument("--limit-factor", type=float, default=1.0, help="Makes each case's time limit longer.")
    parser.add_argument("--python", default=sys.executable, help="The Python that has vLLM.")
    parser.add_argument("--golden", action="store_true", help="Make two captures under nsys instead.")
    parser.add_argument("--nsys", help="The nsys of --golden. Default: the one that nvtxmoe finds.")
    options = parser.parse_args()
    if options.small and options.ranks is None:
        parser.error("--small goes with --ranks")
    known = CASES if options.ranks is None else rank_cases(options.ranks, small=options.small)
    if unknown := set(options.only or ()) - {case.name for case in known}:
        parser.error(f"no case is called {', '.join(sorted(unknown))}: {', '.join(case.name for case in known)}")
    facts = machine()
    print(json.dumps(facts), flush=True)
    os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(tempfile.gettempdir()) / "check-all-vllm-cache"))
    if options.golden:
        return golden_captures.make(options.out, python=options.python, nsys=options.nsys, budget_s=options.budget_s)
    chosen = [case for case in known if options.only is None or case.name in options.only]
    cases = [replace(case, limit_s=case.limit_s * options.limit_factor) for case in chosen]
    gpus = options.gpus or (options.ranks if options.small else max(1, len(facts["gpus"])))
    driver = Driver(options.out, cases, gpus=gpus, jobs=options.jobs, budget_s=options.budget_s, python=options.python)
    driver.machine = facts
    results = driver.run()
    return int(any(result["status"] not in ("exact", "not run") for result in results))


if __name__ == "__main__":
    sys.exit(main())
