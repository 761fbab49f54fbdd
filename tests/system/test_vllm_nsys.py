"""A real vLLM under a real nsys, in both modes at once: the same files from the report and from the journal."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path

import pytest

from nvtxmoe.cli import run
from tests.support.nsys_runs import run_nsys
from tests.support.vllm_runs import SAMPLE_EVERY, Done, Runs
from tests.system.test_vllm_capture import assert_equal, assert_healthy

#: What vLLM itself puts around a forward, in NVTX's default domain, with VLLM_NVTX_SCOPES_FOR_PROFILING=1.
STEP_SCOPE = "gpu_model_runner: forward"
PUSH_POP = 59


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            ("under nsys", "qwen3_moe off"), id="inproc", marks=pytest.mark.vllm_runs("under nsys", "qwen3_moe off")
        ),
        pytest.param(("tp2 on", "tp2 off"), id="tp2", marks=pytest.mark.vllm_runs("tp2 on", "tp2 off")),
    ],
)
def pair(request: pytest.FixtureRequest, vllm_runs: Runs) -> tuple[Done, Done]:
    """A run under nsys, and the run with the oracle."""
    on, off = request.param
    return vllm_runs[on], vllm_runs[off]


@pytest.fixture(scope="module")
def export(pair: tuple[Done, Done], nsys_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report as SQLite, by nsys itself."""
    path = tmp_path_factory.mktemp("export") / "report.sqlite"
    run_nsys(nsys_path, "export", "--type", "sqlite", "-o", path, pair[0].report)
    return path


def ranges(export: Path, domain: str | None) -> dict[str, int]:
    """How often each push/pop range was there, in a domain by name; None for the default domain."""
    with sqlite3.connect(export) as database:
        named = dict(
            database.execute(
                "SELECT domainId, coalesce(e.text, s.value) FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId"
                " WHERE eventType = 75"
            ).fetchall()
        )
        rows = database.execute(
            "SELECT domainId, coalesce(e.text, s.value), count(*) FROM NVTX_EVENTS e"
            " LEFT JOIN StringIds s ON s.id = e.textId WHERE eventType = ? GROUP BY 1, 2",
            [PUSH_POP],
        ).fetchall()
    return {text: number for number_of, text, number in rows if named.get(number_of) == domain}


def test_the_answers_do_not_change(pair: tuple[Done, Done]) -> None:
    assert pair[0].tokens == pair[1].tokens


def test_as_many_steps_as_vllm_says(pair: tuple[Done, Done], export: Path) -> None:
    on, off = pair
    theirs, ours = ranges(export, None), ranges(export, "nvtxmoe")
    ranks = on.captured()
    steps = len(off.expected()) * len(ranks)
    assert theirs[STEP_SCOPE] == ours["moe.step"] == sum(len(rank.steps) for rank in ranks.values()) == steps
    layers = [layer["layer"] for layer in ranks[0].meta["layers"]]
    wanted = {f"moe.layer.{layer}": steps for layer in layers}
    wanted |= {f"moe.{phase}": steps * len(layers) for phase in ("route", "dispatch", "experts", "combine")}
    if len(ranks) > 1:
        wanted["moe.collective"] = steps * len(layers)
    assert {name: number for name, number in ours.items() if name != "moe.step"} == wanted


def test_the_journals_are_the_oracles_under_nsys_too(pair: tuple[Done, Done]) -> None:
    on, off = pair
    for rank, captured in on.captured().items():
        assert_equal(captured, off.expected(rank), rank, SAMPLE_EVERY)
        assert_healthy(captured)


def without_times(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows; when a step began was measured twice, by two clocks."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return [{key: value for key, value in row.items() if key != "timestamp_sec"} for row in rows]


def test_the_report_gives_the_files_of_direct_mode(
    pair: tuple[Done, Done], nsys_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = pair[0]
    assert run(["analyze", str(done.report), "-o", str(tmp_path), "--nsys", str(nsys_path)]) == 0
    capsys.readouterr()
    theirs, ours = tmp_path / "moe_expert_tracking", done.session / "moe_expert_tracking"
    for name in (
        "moe_expert_activations.csv", "moe_expert_coselection.csv", "moe_routing_weights_hist.csv",
    ):  # fmt: skip
        assert (theirs / name).read_bytes() == (ours / name).read_bytes(), name
    imbalance = "moe_load_imbalance.csv"
    assert without_times(theirs / imbalance) == without_times(ours / imbalance)
    assert (theirs / "moe_summary.json").read_bytes() == (ours / "moe_summary.json").read_bytes()
    validation = json.loads((theirs / "moe_capture_validation.json").read_text())
    failed = [check["name"] for check in validation["checks"] if check["status"] == "fail"]
    assert failed == ["cuda_tracing"]  # there is no GPU here
    assert validation["inputs"][0]["payload_encoding"] == "words"
    assert json.loads((ours / "moe_capture_validation.json").read_text())["verdict"] == "complete"
