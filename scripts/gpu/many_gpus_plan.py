"""Stages of ``scripts/gpu/many_gpus.py``: commands for a number of GPUs, time limits, and how each result is read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.gpu import many_gpus_facts as facts
from scripts.gpu.golden_captures import OFFLINE, ROOT
from scripts.gpu.many_gpus_facts import Facts
from scripts.gpu.placement_run import SHAPE

GPU, BENCH = ROOT / "scripts" / "gpu", ROOT / "scripts" / "bench"
LAYERS, EXPERTS, TOP_K = 16, 128, 8
RESULTS = "moe_expert_tracking"
#: Numbers of processes in which reports are analyzed.
JOBS = (1, 2, 4, 8, 16)

Command = tuple[str, ...]


@dataclass(frozen=True)
class Setup:
    """What all stages share.

    Attributes:
        out: the folder of all results, absolute.
        ranks: GPUs.
        python: that has vLLM.
        nsys: program of Nsight Systems.
        small: a tiny model on CPUs, to try the stages.
    """

    out: Path
    ranks: int
    python: str
    nsys: str
    small: bool = False

    def environment(self) -> dict[str, str]:
        """Return variables of all stages."""
        path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH", ""))))
        shared = {
            "PYTHONPATH": path, "NVTXMOE_NSYS": self.nsys, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_HOST_IP": "127.0.0.1",
        }  # fmt: skip
        if self.small:  # nsys 2023.4 exports no binary payloads; vLLM for CPUs takes all memory and cores by default
            shared |= {"NVTXMOE_PAYLOAD": "words", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                       "OMP_NUM_THREADS": "1"}  # fmt: skip
        return {**os.environ, **shared}


@dataclass(frozen=True)
class Stage:
    """One step of the run.

    Attributes:
        name: of its folder in the results.
        what: it shows, for people.
        commands: run one after the other, up to the first that fails.
        limit_s: seconds for all commands together.
        read: makes facts of what the commands left.
        needs: files of earlier stages; if one is missing, the stage is not run.
    """

    name: str
    what: str
    commands: tuple[Command, ...]
    limit_s: float
    read: Callable[[], Facts]
    needs: tuple[Path, ...] = ()


def nvtxmoe(*words: str | Path) -> Command:
    """Return a command of nvtxmoe, with the analysis's Python."""
    return (sys.executable, "-m", "nvtxmoe", *map(str, words))


def with_variables(command: Command, **variables: str) -> Command:
    """Return a command that runs with further environment variables."""
    return ("env", *(f"{name}={value}" for name, value in variables.items()), *command)


def stages(setup: Setup) -> tuple[Stage, ...]:
    """Return all stages in their order."""
    return (
        _profile_tensor_parallel(setup),
        _profile_data_parallel(setup),
        _counts(setup),
        _placement(setup),
        _throughput(setup),
        _reports(setup),
        _scaling(setup),
        _scaling_tiled(setup),
        _golden(setup),
    )


def _profile(setup: Setup, name: str, what: str, words: tuple[str, ...], *, data_parallel: bool) -> Stage:
    run = setup.out / name / "run"
    return Stage(
        name,
        what,
        (nvtxmoe("profile", "-o", run, "--log-interval", "8", "--", setup.python, *words),),
        600.0,
        lambda: facts.capture(run / RESULTS, setup.ranks, data_parallel=data_parallel, gpu=not setup.small),
    )


def _profile_tensor_parallel(setup: Setup) -> Stage:
    size: Command = ("--layers", str(LAYERS))
    if setup.small:
        size = ("--small", "--layers", "2", "--requests", "4", "--max-tokens", "4")
    words = (str(GPU / "demo_run.py"), "--tp", str(setup.ranks), *size)
    what = "nvtxmoe profile, tensor and expert parallel, skewed gates"
    return _profile(setup, "profile-tp-ep", what, words, data_parallel=False)


def _model(setup: Setup) -> tuple[str, ...]:
    """Options of ``scripts/gpu/offline.py`` for the model and the load."""
    if setup.small:
        return ("--small", "--layers", "2", "--experts", "16", "--top-k", "2", "--requests", "4", "--max-tokens", "4")
    size = ("--layers", str(LAYERS), "--experts", str(EXPERTS), "--top-k", str(TOP_K))
    return (*size, "--config", json.dumps(SHAPE), "--requests", str(8 * setup.ranks), "--max-tokens", "32")


def _profile_data_parallel(setup: Setup) -> Stage:
    words = (str(OFFLINE), "--dp", str(setup.ranks), "--expert-parallel", "--gates", "skewed", *_model(setup))
    what = "nvtxmoe profile, data and expert parallel, skewed gates"
    return _profile(setup, "profile-dp-ep", what, words, data_parallel=True)


def _counts(setup: Setup) -> Stage:
    limit_s = 1500.0
    words = ["--ranks", str(setup.ranks), "--jobs", "1", "--budget-s", str(limit_s - 60), "--python", setup.python]
    out = setup.out / "counts"
    command = (sys.executable, str(GPU / "check_all.py"), str(out), *words, *(["--small"] if setup.small else []))
    what = "scripts/gpu/check_exact.py on every rank: TP+EP and DP+EP, with and without EPLB"
    return Stage("counts", what, (command,), limit_s, lambda: facts.exact(out))


def _placement(setup: Setup) -> Stage:
    out, what = setup.out / "placement", "predicted against measured change of placements"
    if setup.small:  # no GPU time, so `nvtxmoe place` has nothing to fit
        file = out / "windows.json"
        words = ("--small", "--tp", str(setup.ranks), "--layers", "2", "--blocks", "1")
        run = (setup.python, str(GPU / "placement_run.py"), str(file), *words)
        return Stage("placement", what, (nvtxmoe("profile", "--mode", "moe", "-o", out / "run", "--", *run),), 600.0,
                     lambda: facts.windows(file))  # fmt: skip
    cases = ("skewed", "even")
    proof = with_variables(
        ("bash", str(GPU / "placement_proof.sh"), str(out), setup.python),
        RANKS=str(setup.ranks), LAYERS=str(LAYERS), CASES=" ".join(cases), NVTXMOE_PYTHON=sys.executable,
    )  # fmt: skip
    redundant = [
        nvtxmoe("place", out / case / RESULTS, "--redundant", str(2 * setup.ranks), "-o", out / f"{case}-redundant")
        for case in cases
    ]
    return Stage("placement", what, (proof, *redundant), 2400.0, lambda: facts.placement(out))


def _throughput(setup: Setup) -> Stage:
    file = setup.out / "throughput" / "throughput.json"
    limit_s = 1800.0
    load: Command = ("--rounds", "3", "--layers", str(LAYERS), "--batch", "64", "--expert-parallel")
    if setup.small:  # whole experts on a rank end vLLM for CPUs
        load = ("--rounds", "1", "--small", "--mode", "moe", "--layers", "2", "--batch", "2", "--batches", "2",
                "--tokens", "8")  # fmt: skip
    words = ("--tp", str(setup.ranks), "--budget-s", str(limit_s - 60), "--out", str(file))
    command = (setup.python, str(BENCH / "throughput.py"), *load, *words)
    what = "tokens per second with and without recording on all ranks"
    return Stage("throughput", what, (command,), limit_s, lambda: facts.throughput(file))


def _report_files(setup: Setup) -> list[Path]:
    return [setup.out / "reports" / f"rank{rank}.nsys-rep" for rank in range(setup.ranks)]


def _reports(setup: Setup) -> Stage:
    folder = setup.out / "reports"
    trace = ("-t", "nvtx") if setup.small else ("-t", "cuda,nvtx", "--cuda-graph-trace=node")
    nsys = (setup.nsys, "profile", *trace, "-s", "none", "--cpuctxsw=none", "-o", f"{folder}/rank%q{{RANK}}")
    ranks = ("--standalone", "--nproc-per-node", str(setup.ranks), "--no-python")
    run = (setup.python, str(OFFLINE), "--tp", str(setup.ranks), "--external", "--expert-parallel", *_model(setup))
    site = os.pathsep.join((str(ROOT / "nvtxmoe" / "site"), setup.environment()["PYTHONPATH"]))
    record = with_variables(
        (setup.python, "-m", "torch.distributed.run", *ranks, *nsys, *run),
        NVTXMOE_ENABLE="1", NVTXMOE_MODE="nsys", NVTXMOE_RUN_ID="many-gpus", PYTHONPATH=site,
    )  # fmt: skip
    commands = (record, nvtxmoe("inspect", *_report_files(setup)))
    what = "one nsys report per rank, exported"
    return Stage("reports", what, commands, 900.0, lambda: facts.reports(folder, setup.ranks))


def _scaling_command(setup: Setup, name: str, *words: str) -> tuple[Path, Command]:
    folder = setup.out / name
    jobs = JOBS if not setup.small else JOBS[:2]
    shared = ("--folder", str(folder / "work"), "--out", str(folder / "scaling.json"), "--jobs", *map(str, jobs))
    command = (sys.executable, str(BENCH / "many_reports.py"), *words, *shared, "--workers", str(setup.ranks))
    return folder / "scaling.json", command


def _scaling(setup: Setup) -> Stage:
    exports = [file.with_suffix(".nvtxmoe.sqlite") for file in _report_files(setup)]
    repeats = "1" if setup.small else "3"
    file, command = _scaling_command(setup, "scaling", "--given", *map(str, exports), "--repeats", repeats)
    what = "analysis of all ranks' reports together: --jobs 1 to 16, and a Dask cluster of this machine"
    return Stage("scaling", what, (command,), 900.0, lambda: facts.scaling(file), needs=tuple(exports))


def _scaling_tiled(setup: Setup) -> Stage:
    size = ("2", "3000", "1") if setup.small else ("16", "1000000", "2")
    words = [word for pair in zip(("--reports", "--kernels", "--repeats"), size, strict=True) for word in pair]
    file, command = _scaling_command(setup, "scaling-tiled", *words)
    what = "likewise of 16 reports that are tiled from a real one, whose truth is known"
    return Stage("scaling-tiled", what, (command,), 1500.0, lambda: facts.scaling(file))


def _golden(setup: Setup) -> Stage:
    report = setup.out / "profile-tp-ep" / "run" / "report.nvtxmoe.sqlite"
    trimmed = setup.out / "golden" / f"{setup.ranks}gpu-tp-ep-capture.sqlite"
    command = nvtxmoe("trim", report, trimmed)
    what = "the TP+EP capture, trimmed and packed, to be kept with the tests"
    return Stage("golden", what, (command,), 600.0, lambda: facts.golden(trimmed), needs=(report,))
