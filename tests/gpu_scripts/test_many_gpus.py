"""scripts/gpu/many_gpus.py: stages that fail or take too long, facts of real captures, and options that exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest

from nvtxmoe.cli import cli
from scripts.gpu import check_exact, many_gpus, many_gpus_facts
from scripts.gpu.cases import CASES, rank_cases
from scripts.gpu.engine_settings import check_engine
from scripts.gpu.many_gpus import run, run_stage
from scripts.gpu.many_gpus_facts import Facts
from scripts.gpu.many_gpus_plan import RESULTS, Setup, Stage, stages
from tests.support import fakes
from tests.support.cli import analyze
from tests.support.paths import ROOT

NAMES = ["profile-tp-ep", "profile-dp-ep", "counts", "placement", "throughput", "reports", "scaling", "scaling-tiled",
         "golden"]  # fmt: skip


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path, 8, sys.executable, "/opt/nsys")


def good() -> Facts:
    return {"passed": True, "line": "all is well"}


def stage(name: str, program: str, read: Callable[[], Facts] = good, **more: Any) -> Stage:
    commands = tuple((sys.executable, "-c", text) for text in program.split("\n"))
    return Stage(name, f"shows {name}", commands, 60.0, read, **more)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("small", [False, True])
def test_every_command_line_has_options_that_its_program_knows(tmp_path: Path, ranks: int, small: bool) -> None:
    planned = stages(Setup(tmp_path, ranks, "/vllm/python", "/opt/nsys", small))
    assert [item.name for item in planned] == NAMES
    programs = set()
    for item in planned:
        for command in item.commands:
            if "nvtxmoe" in command:
                before, _, _ = " ".join(command).partition(" -- ")
                words = before.split()
                name = words[words.index("nvtxmoe") + 1]
                known = cli.get_command(click.Context(cli), name)
                assert known is not None
                options = {option for parameter in known.params for option in parameter.opts}
                assert {word for word in words[words.index(name) :] if word.startswith("-")} <= options
            scripts = [at for at, word in enumerate(command) if word.startswith(str(ROOT / "scripts"))]
            for at in scripts:
                source = Path(command[at]).read_text()
                for word in command[at + 1 :]:
                    assert not word.startswith("--") or f'"{word}"' in source + add_model_options_source(), word
                programs.add(Path(command[at]).name)
    expected = {"demo_run.py", "offline.py", "check_all.py", "throughput.py", "many_reports.py"}
    assert programs == expected | {"placement_run.py" if small else "placement_proof.sh"}


def add_model_options_source() -> str:
    return (ROOT / "scripts" / "gpu" / "engine_settings.py").read_text()


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_cases_for_any_number_of_ranks_divide_heads_and_experts(ranks: int) -> None:
    cases = rank_cases(ranks)
    names = [f"{kind}{ranks}-ep{eplb}-many-experts" for eplb in ("", "-eplb") for kind in ("tp", "dp")]
    assert [case.name for case in cases] == names
    assert not {case.name for case in cases} & {case.name for case in CASES}
    for case in cases:
        options = check_exact.parser().parse_args(case.words)
        made = check_engine(options)
        assert case.torchrun
        assert options.tp * options.dp == case.gpus == ranks
        assert (options.layers, options.experts, options.top_k) == (16, 128, 8)
        slots = options.experts + (made["eplb_config"]["num_redundant_experts"] if options.eplb else 0)
        assert slots % ranks == 0
        assert made["enable_expert_parallel"] is True


def test_experts_that_do_not_divide_are_refused() -> None:
    for ranks in (1, 3, 6):
        with pytest.raises(ValueError, match=f"{ranks} ranks"):
            rank_cases(ranks)


def test_a_stage_that_fails_ends_the_stage_alone(setup: Setup, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unreadable() -> Facts:
        raise KeyError("no such column")

    planned = (
        stage("good", "print(1)"),
        stage("breaks", "import sys; sys.exit(7)\nopen('/nowhere/else', 'w')"),
        stage("unreadable", "pass", unreadable),
        stage("wrong", "pass", lambda: {"passed": False, "line": "3 of 4"}),
        stage("waits", "pass", needs=(setup.out / "good" / "none",)),
        stage("last", "pass"),
    )
    nsys = fakes.executable(setup.out / "nsys", "exit 0")
    facts = {"gpus": ["H200"] * 8, "date": "today", "vllm": "0.33.0", "torch": None, "triton": None, "driver": None}
    monkeypatch.setattr(many_gpus, "stages", lambda _: planned)
    monkeypatch.setattr(many_gpus, "machine", lambda _: facts)
    arguments = ["many_gpus.py", str(setup.out / "out"), "--nsys", str(nsys)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert many_gpus.main() == 1
    document = json.loads((setup.out / "out" / "summary.json").read_text())
    status = {result["name"]: result["status"] for result in document["stages"]}
    assert status == {
        "good": "passed", "breaks": "failed", "unreadable": "failed", "wrong": "not passed", "waits": "not run",
        "last": "passed",
    }  # fmt: skip
    lines = {result["name"]: result["line"] for result in document["stages"]}
    assert "command 1 ended with status 7" in lines["breaks"]
    assert "no such column" in lines["unreadable"]
    assert not (setup.out / "out" / "breaks" / "2.log").exists()
    assert (setup.out / "out" / "good" / "1.log").read_text() == "1\n"
    printed = capsys.readouterr().out.splitlines()
    assert printed[6] == "all stages: at most 6 min"
    assert [line.split()[0] for line in printed[7:]] == [item.name for item in planned]
    assert "8 x H200, today: vllm 0.33.0." in (setup.out / "out" / "summary.md").read_text()

    monkeypatch.setattr(many_gpus, "stages", lambda _: (*planned[:1], stage("breaks", "pass"), *planned[2:]))
    monkeypatch.setattr(sys, "argv", [*arguments, "--only", "breaks"])
    assert many_gpus.main() == 0  # again, alone: results of the other stages are kept
    document = json.loads((setup.out / "out" / "summary.json").read_text())
    assert {result["name"]: result["status"] for result in document["stages"]} == {**status, "breaks": "passed"}


def test_a_stage_that_takes_too_long_is_asked_to_end_and_what_it_left_is_read(setup: Setup) -> None:
    file = setup.out / "left"
    program = f"import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: open({str(file)!r}, 'w').write('x')"
    slow = Stage(
        "slow", "", ((sys.executable, "-c", program),), 600.0, lambda: {"passed": True, "line": file.read_text()}
    )
    result = run_stage(slow, setup, 2.0)
    assert (result["status"], result["line"].rpartition("; ")[2]) == ("timed out", "x")


def test_processes_with_a_session_of_their_own_are_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_gpus, "GRACE_S", 0.5)
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\ntime.sleep(600)"
    )
    assert run([sys.executable, "-c", program], dict(os.environ), tmp_path / "log", 4.0) is None
    until = time.monotonic() + 30
    while Path(f"/proc/{pid.read_text()}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid.read_text()}").exists()


@pytest.fixture(scope="module")
def tables(golden_vllm_ranks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results of two real captures of two ranks: tensor and data parallel, both expert parallel."""
    folder = tmp_path_factory.mktemp("results")
    for kind in ("tp2", "dp2"):
        analyze(golden_vllm_ranks[kind], folder / kind)
    return {kind: folder / kind / RESULTS for kind in ("tp2", "dp2")}


@pytest.mark.parametrize("kind", ["tp2", "dp2"])
def test_facts_of_real_captures(tables: dict[str, Path], kind: str) -> None:
    found = many_gpus_facts.capture(tables[kind], 2, data_parallel=kind == "dp2", gpu=True)
    assert found["passed"] is True
    assert found["verdict"] == "complete"
    assert found["collectives"]["collectives"] > 400
    assert found["collectives"]["reasons"] == ({} if kind == "tp2" else {"rank_not_in_step": 24})
    assert [rank["rank"] for rank in found["counts"]["per_rank"]] == ([0] if kind == "tp2" else [0, 1])
    missing_ranks = many_gpus_facts.capture(tables[kind], 4, data_parallel=kind == "dp2", gpu=True)
    assert missing_ranks["passed"] is False


def test_sums_over_data_parallel_ranks_are_compared(tables: dict[str, Path], tmp_path: Path) -> None:
    assert many_gpus_facts.count_sums(tables["dp2"], data_parallel=False)["wrong_experts"] > 100
    for file in ("moe_summary.json", "moe_expert_activations.csv"):
        (tmp_path / file).write_bytes((tables["dp2"] / file).read_bytes())
    cells = pl.read_parquet(tables["dp2"] / "moe_step_activations.parquet")
    changed = [[count + (row == 0 and at == 3) for at, count in enumerate(counts)] for row, counts in
               enumerate(cells["counts"].to_list())]  # fmt: skip
    cells.with_columns(counts=pl.Series(changed, dtype=pl.List(pl.UInt32))).write_parquet(
        tmp_path / "moe_step_activations.parquet"
    )
    found = many_gpus_facts.count_sums(tmp_path, data_parallel=True)
    assert (found["wrong_cells"], found["wrong_experts"]) == (1, 1)


def test_exact_needs_every_case(tmp_path: Path) -> None:
    process = {"oracle_cells": 40}
    cases = [{"name": "a", "status": "exact", "processes": [process, process]}]
    (tmp_path / "results.json").write_text(json.dumps({"cases": cases}))
    assert many_gpus_facts.exact(tmp_path)["line"] == "1 of 1 cases exact, 2 ranks, 80 (step, layer)"
    cases.append({"name": "b", "status": "not run", "why": "no time was left"})
    (tmp_path / "results.json").write_text(json.dumps({"cases": cases}))
    found = many_gpus_facts.exact(tmp_path)
    assert found["passed"] is False
    assert "b: not run, no time was left" in found["line"]


def test_placements_are_counted_where_predicted_and_measured_agree(tmp_path: Path) -> None:
    pl.DataFrame({"predicted_ns": [5.0, 50.0], "low_ns": [0.0, 0.0], "high_ns": [9.0, 9.0]}).write_csv(
        tmp_path / "sums.csv"
    )
    folder = tmp_path / "skewed-redundant" / "moe_placement"
    folder.mkdir(parents=True)
    placements = [{"name": "today", "layers": []}, {"name": "redundant", "layers": [1], "all": {"saved_ns": 3.0}}]
    (folder / "placement.json").write_text(json.dumps({"placements": placements}))
    found = many_gpus_facts.placement(tmp_path)
    assert found["line"].startswith("2 sums of a placement measured, 1 predictions in the measured interval; 1 cases")
    assert found["redundant_predicted_only"] == {"skewed-redundant": {"name": "redundant", "all": {"saved_ns": 3.0}}}


def test_a_wrong_number_of_gpus_a_missing_nsys_and_a_folder_of_other_files_are_refused(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "gpu" / "many_gpus.py"

    def said(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, script, tmp_path / "out", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        return done.stderr

    assert "3 GPUs: 2, 4 or 8 are needed" in said("--gpus", "3")
    assert "no nsys at /no/nsys" in said("--gpus", "4", "--nsys", "/no/nsys")
    assert not (tmp_path / "out").exists()
    mine = tmp_path / "out" / "reports" / "mine.nsys-rep"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert "holds other files" in said("--gpus", "4", "--nsys", sys.executable)
    assert mine.exists()
