"""Runs of programs/run_vllm.py that tests share: each is done once per session, two at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nvtxmoe.capture.vllm.recomputed_beside import VARIABLE
from scripts.make_tiny_model import write_model
from tests.support.journal_reader import Captured, only_session, read_session
from tests.support.nsys_runs import NsysError, again, nsys_alone
from tests.support.paths import ROOT
from tests.support.router_oracle import Step, expected_steps
from tests.support.vllm_forks import PATIENCE_S, PROGRAMS, Forks

SITE = ROOT / "nvtxmoe" / "site"
AT_ONCE = 2
LAYERS, EXPERTS, TOP_K = 3, 16, 4
SAMPLE_EVERY = 2

#: Lengths of prompts and answers: with 16 tokens and three requests a step, prompts are cut into chunks, and most
#: steps hold prefill and decode tokens.
SEVERAL = ((23, 7), (9, 12), (41, 5), (12, 9), (30, 3))
#: One request, where the engine is a process of its own: otherwise the steps would depend on timing.
SINGLE = ((41, 6),)

#: Direct mode, as most tests use it.
DIRECT = {"NVTXMOE_ENABLE": "1", "NVTXMOE_MODE": "moe", "NVTXMOE_LOG_INTERVAL": str(SAMPLE_EVERY)}
EVERYTHING = DIRECT | {"NVTXMOE_EMIT": "ranges,counts,topk,physical,pairs", "NVTXMOE_LOG_INTERVAL": "1"}
METRICS = {"NVTXMOE_METRICS": "1", "NVTXMOE_METRICS_HOST": "192.0.2.1"}
RECOMPUTED = EVERYTHING | {VARIABLE: "1"}
BOTH = DIRECT | {"NVTXMOE_MODE": "both", "NVTXMOE_PAYLOAD": "words", "VLLM_NVTX_SCOPES_FOR_PROFILING": "1"}


@dataclass(frozen=True)
class Run:
    """One process.

    Attributes:
        settings: variables of the environment; none of them means that nvtxmoe is off.
        way: how nvtxmoe gets in: the entry point of the installed package, PYTHONPATH alone, or both.
        oracle: whether router logits are kept.
        faults: whether programs/run_vllm_faults.py runs instead.
    """

    family: str = "qwen3_moe"
    mode: str = "inproc"
    settings: dict[str, str] = field(default_factory=dict)
    way: str = "plugin"
    oracle: bool = False
    eager: bool = True
    faults: bool = False
    nsys: bool = False

    @property
    def forks(self) -> bool:
        """Whether it begins as a fork of a process that has imported vLLM, and so do vLLM's own processes.

        It spares each the import. Nothing has to be in place before.
        """
        return self.way == "plugin" and not self.nsys


#: Softmax and all experts; sigmoid with a bias and groups; the best logits.
RECOMPUTED_FAMILIES = ("qwen3_moe", "deepseek_v3", "gpt_oss")
FAMILIES = ("qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "gpt_oss")
RUNS: dict[str, Run] = {
    **{f"{family} off": Run(family, oracle=True) for family in FAMILIES},
    **{f"{family} on": Run(family, settings=DIRECT) for family in FAMILIES},
    "worker off": Run(mode="worker", oracle=True),
    # Only what the end of the worker brings: the journal is written, then merged.
    "worker on": Run(mode="worker", settings=DIRECT | {"NVTXMOE_FLUSH_INTERVAL": "600"}),
    "tp2 off": Run(mode="tp2", oracle=True),
    "tp2 on": Run(mode="tp2", settings=BOTH, nsys=True),
    # Live metrics too, whose own server can't begin: no machine has this address (RFC 5737).
    "everything by site": Run(settings=EVERYTHING | METRICS, way="site"),
    "metrics without a folder": Run(settings=DIRECT | {"NVTXMOE_METRICS": "1", "NVTXMOE_LIVE_DIR": "/dev/null/live"}),
    # Layers are recorded a second time, recomputed from their router's logits.
    **{f"{family} recomputed": Run(family, settings=RECOMPUTED) for family in RECOMPUTED_FAMILIES},
    "faults": Run("deepseek_v3", settings=BOTH, faults=True),
    # Both ways in, too.
    "under nsys": Run(settings=BOTH, nsys=True, way="both"),
    "compiled on": Run(settings=DIRECT | {"VLLM_CPU_CI_ENV": "1"}, eager=False),
}


@dataclass(frozen=True)
class Done:
    """What came of a run.

    Attributes:
        said: what the program wrote.
        stderr: everything that its processes wrote there.
    """

    run: Run
    folder: Path
    config: dict[str, Any]
    said: dict[str, Any]
    stderr: str

    @property
    def tokens(self) -> list[list[int]]:
        """Token ids of every request."""
        tokens: list[list[int]] = self.said["tokens"]
        return tokens

    @property
    def base(self) -> Path:
        """Where sessions of direct mode go."""
        return self.folder / "sessions"

    @property
    def session(self) -> Path:
        """The one session of this run."""
        return only_session(self.base)

    @property
    def report(self) -> Path:
        """The nsys report."""
        return self.folder / "report.nsys-rep"

    def captured(self) -> dict[int, Captured]:
        """The session's journals by rank."""
        return read_session(self.session)

    def expected(self, rank: int = 0) -> list[Step]:
        """What the oracle saw on a rank."""
        return expected_steps(self.folder / f"out.rank{rank}.npz", self.config)

    def warnings(self) -> list[str]:
        """Warnings of nvtxmoe."""
        return [line for line in self.stderr.splitlines() if line.startswith("nvtxmoe[") and "WARNING" in line]


def prompt(length: int) -> list[int]:
    """Token ids that repeat nothing."""
    return [(7 * place * place + 13 * length + place) % 256 for place in range(length)]


def specification(run: Run, model: Path) -> dict[str, Any]:
    """The program's input."""
    lengths = SEVERAL if run.mode == "inproc" else SINGLE
    return {
        "model": str(model),
        "mode": run.mode,
        "prompts": [prompt(length) for length, _ in lengths],
        "max_tokens": [most for _, most in lengths],
        "max_num_batched_tokens": 16,
        "max_num_seqs": 3,
        "eager": run.eager,
        "seed": 5,
        "oracle": run.oracle,
        "patient": run.nsys and run.mode != "inproc",
        "forks": run.forks,
    }


def environment(run: Run, folder: Path) -> dict[str, str]:
    """The run's environment: nothing of nvtxmoe's or vLLM's from outside.

    What vLLM keeps of models stays in the cache folder of the tests, as in life, but compiled code is made anew.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NVTXMOE_", "VLLM_")) and k != "PYTHONPATH"}
    kept |= {"NVTXMOE_OUTPUT_DIR": str(folder / "sessions")} | run.settings
    if not run.eager:
        kept["VLLM_CACHE_ROOT"] = str(folder.parent / "cache")
    if run.way != "plugin":
        kept["PYTHONPATH"] = str(SITE)
    if run.way == "site":
        kept["VLLM_PLUGINS"] = ""  # no entry points
    return kept


def do(run: Run, folder: Path, python: Path, nsys: Path | None, forks: Forks) -> Done:
    """Run it in a new folder. A process that fails is an AssertionError with what it wrote."""
    folder.mkdir()
    return again(partial(attempt, run, folder, python, nsys, forks), folder)


def attempt(run: Run, folder: Path, python: Path, nsys: Path | None, forks: Forks) -> Done:
    """Run it in an empty folder."""
    model = write_model(folder / "model", run.family, layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    (folder / "spec.json").write_text(json.dumps(specification(run, model)))
    program = "run_vllm_faults" if run.faults else "run_vllm"
    if run.forks:
        done = forks.run(folder, environment(run, folder), program)
    else:
        command = [str(python), str(PROGRAMS / f"{program}.py"), "spec.json", "out"]
        if run.nsys:
            assert nsys is not None
            command = [str(nsys), "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "-o", "report", *command]
        with nsys_alone() if run.nsys else nullcontext():
            done = subprocess.run(
                command, cwd=folder, env=environment(run, folder), capture_output=True, text=True, check=False,
                timeout=PATIENCE_S,
            )  # fmt: skip
        (folder / "stderr.txt").write_text(done.stderr)
    assert done.returncode == 0, f"{done.args} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    if run.nsys and not (folder / "report.nsys-rep").exists():
        raise NsysError(f"{done.args} left no report:\n{done.stdout}\n{done.stderr}")
    config = json.loads((model / "config.json").read_text())
    return Done(run, folder, config, json.loads((folder / "out.json").read_text()), done.stderr)


class Runs:
    """All runs of a session. Those of ``first`` begin at once, others when they are asked for."""

    def __init__(self, folder: Path, python: Path, nsys: Path | None, forks: Forks, first: Iterable[str]) -> None:
        self._folder, self._python, self._nsys, self._forks = folder, python, nsys, forks
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._futures: dict[str, Future[Done]] = {}
        for name in first:
            self._begin(name)

    def _begin(self, name: str) -> Future[Done]:
        if name not in self._futures:
            folder = self._folder / name.replace(" ", "-")
            self._futures[name] = self._pool.submit(do, RUNS[name], folder, self._python, self._nsys, self._forks)
        return self._futures[name]

    def __getitem__(self, name: str) -> Done:
        """Wait for a run."""
        return self._begin(name).result()

    def close(self) -> None:
        """Forget what has not begun; wait for what has."""
        self._pool.shutdown(cancel_futures=True)
