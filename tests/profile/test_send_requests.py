"""The load: our own client against a real HTTP server, its script, and reading vLLM's client's results."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profile.interpreter import Interpreter
from nvtxmoe.profile.load_client import Load, drive, prompts
from nvtxmoe.profile.load_drive import bench_command, bench_program, bench_report, drive_with_bench
from nvtxmoe.profile.load_report import LoadReport, percentile
from tests.programs.serve_stand_in import HANG_S, MODEL, StandIn
from tests.support.cli import Ran
from tests.support.paths import ROOT
from tests.support.profile_runs import free_port

SCRIPT = ROOT / "scripts" / "send_test_requests.py"


@contextmanager
def serving(*faults: str) -> Iterator[StandIn]:
    """A server whose requests meet these in turn."""
    with StandIn(faults=faults or ("ok",)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def send(server: StandIn, num_requests: int, **options: Any) -> LoadReport:
    return asyncio.run(drive(Load(server.base_url, num_requests, **options)))


def script(*arguments: object, **environment: str) -> Ran:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


# What is sent


def test_completions() -> None:
    with serving() as server:
        report = send(server, 9, concurrency=3, max_tokens=7, prompt_tokens=5, seed=3)
    assert (len(report.latencies_s), len(report.first_tokens_s), report.failed) == (9, 9, 0)
    assert all(first <= whole for first, whole in zip(report.first_tokens_s, report.latencies_s, strict=True))
    assert server.most_active == 3
    assert {body["path"] for body in server.bodies} == {"/v1/completions"}
    assert {(body["model"], body["max_tokens"], body["stream"]) for body in server.bodies} == {(MODEL, 7, True)}
    texts = [body["prompt"] for body in server.bodies]
    assert {len(text.split()) for text in texts} == {5}
    assert len(set(texts)) == 9
    assert sorted(texts) == sorted(prompts(Load("", 9, prompt_tokens=5, seed=3)))
    assert sorted(texts) != sorted(prompts(Load("", 9, prompt_tokens=5, seed=4)))


def test_whole_chat_answers() -> None:
    with serving() as server:
        report = send(server, 2, chat=True, stream=False, model="other")
    assert (len(report.latencies_s), report.first_tokens_s, report.failed) == (2, [], 0)
    assert {(body["path"], body["model"], body["stream"]) for body in server.bodies} == {
        ("/v1/chat/completions", "other", False)
    }
    assert server.bodies[0]["messages"][0]["role"] == "user"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_endpoint_may_be_named_in_full(end: str) -> None:
    assert Load(f"http://box:1{end}", 1).api == "http://box:1/v1"


def test_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving() as server:
        send(server, 1)
    assert server.headers_seen[0]["Authorization"] == "Bearer k"


# How it fares


@pytest.mark.parametrize(
    ("fault", "stream", "reason"),
    [
        ("http500", True, "HTTP 500: out of luck"),
        ("http500", False, "HTTP 500: out of luck"),
        ("cut", True, "a stream that was cut off"),
        ("error", True, "an error in the stream: engine died"),
        (
            "garbage",
            True,
            "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        ("reset", True, "connection lost"),
        ("empty", True, "an answer without tokens"),
        ("empty", False, "an answer without choices"),
    ],
)
def test_failures_are_counted_by_reason(fault: str, stream: bool, reason: str) -> None:
    with serving("ok", fault) as server:
        report = send(server, 6, concurrency=1, stream=stream)
    assert report.failures == {reason: 3}
    assert len(report.latencies_s) == 3
    assert report.finished == 6
    assert f", 3 failed; 3 x {reason}" in report.line()


def test_an_answer_that_takes_too_long() -> None:
    with serving("ok", "hang") as server:
        report = send(server, 2, concurrency=1, timeout_s=0.3)
        assert report.failures == {"no answer within 0.3 s": 1}
        assert report.seconds < HANG_S


def test_a_server_that_goes_away() -> None:
    with serving() as server:
        load = Load(server.base_url, 3, model=MODEL, concurrency=1)

        def gone(report: LoadReport) -> None:
            if report.finished == 1:
                server.shutdown()
                server.server_close()

        report = asyncio.run(drive(load, gone))
    assert (len(report.latencies_s), report.failures) == (1, {"connection refused": 2})


def test_an_endpoint_without_a_model() -> None:
    with serving() as server:
        wrong = Load(f"{server.base_url}/elsewhere", 1)
        with pytest.raises(NvtxmoeError, match="elsewhere/v1/models: it answered HTTP 404"):
            asyncio.run(drive(wrong))


def test_the_line() -> None:
    report = LoadReport(seconds=4.0)
    assert report.line() == "0 requests in 4.0 s (0.0 a second), 0 failed"
    for number in range(1, 101):
        report.add(number / 10, number / 1000)
    report.add_failure("b")
    for _ in range(2):
        report.add_failure("a")
    assert report.line() == (
        "103 requests in 4.0 s (25.8 a second), latency p50 5.00 s p90 9.00 s p99 9.90 s, "
        "first token p50 50.0 ms p90 90.0 ms p99 99.0 ms, 3 failed; 2 x a; 1 x b"
    )


def test_percentiles_by_nearest_rank() -> None:
    assert [percentile([3.0, 1.0, 2.0], p) for p in (0, 33, 34, 50, 66, 67, 100)] == [1, 1, 2, 2, 2, 3, 3]
    assert percentile([7.0], 99) == 7


# The script


def test_the_script() -> None:
    with serving() as server:
        ran = script("--base-url", server.base_url, "--num-requests", 5, "--concurrency", 2)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("5 requests in ") and ran.out.endswith(", 0 failed\n")
    assert len(server.bodies) == 5


def test_the_scripts_exit_code_when_requests_fail() -> None:
    with serving("ok", "http500") as server:
        ran = script("--base-url", server.base_url, "--num-requests", 2, "--chat", "--no-stream")
    assert ran.code == 1
    assert ran.out.endswith(", 1 failed; 1 x HTTP 500: out of luck\n")


def test_the_script_without_a_server() -> None:
    port = free_port()
    ran = script("--base-url", f"http://127.0.0.1:{port}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"send_test_requests.py: http://127.0.0.1:{port}: the endpoint can't be reached: connection refused. "
        "Start the server first, or name another with --base-url\n"
    )


@pytest.mark.parametrize("wrong", [["--num-requests", "0"], ["--concurrency", "x"]])
def test_the_scripts_wrong_options(wrong: list[str]) -> None:
    ran = script(*wrong)
    assert ran.code == 2
    assert f"invalid positive value: '{wrong[1]}'" in ran.err


# vLLM's own client


def vllm_of(folder: Path, *lines: str) -> Path:
    """A `vllm` that is a Python program with its arguments in sys.argv."""
    program = folder / "vllm"
    program.write_text("\n".join((f"#!{sys.executable}", "import json, pathlib, sys", *lines)) + "\n")
    program.chmod(0o755)
    return program


def test_which_vllm_has_the_client(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    program, elsewhere = vllm_of(tmp_path), vllm_of(other)
    here = Interpreter(tmp_path / "python", True, "0.2.11", "0.32.0", has_vllm=True)
    bare = Interpreter(tmp_path / "python", True, "0.2.11", None, has_vllm=False)
    away = Interpreter(tmp_path / "none" / "python", True, "0.2.11", "0.32.0", has_vllm=True)
    module = [str(tmp_path / "python"), "-m", "vllm.entrypoints.openai.api_server"]
    assert bench_program([str(elsewhere), "serve"], here) == elsewhere
    assert bench_program(module, here) == program
    assert bench_program(module, bare) is None
    assert bench_program(module, away) is None
    program.chmod(0o644)
    assert bench_program(module, here) is None


DETAILED = {
    "duration": 2.5,
    "completed": 2,
    "latencies": [1.0, 0.0, 2.0],
    "ttfts": [0.25, 0.0, 0.5],
    "itls": [[0.5, 0.25], [], [1.5]],
    "errors": ["", "Traceback ...\nRuntimeError: no luck", ""],
}


@pytest.mark.parametrize("latencies", [True, False], ids=["latencies", "gaps only"])
def test_the_clients_result(latencies: bool) -> None:
    found: dict[str, object] = {name: value for name, value in DETAILED.items() if latencies or name != "latencies"}
    report = bench_report(found, 4)
    assert (report.latencies_s, report.first_tokens_s, report.seconds) == ([1.0, 2.0], [0.25, 0.5], 2.5)
    assert report.failures == {"Traceback ... RuntimeError: no luck": 1, "not in the client's result": 1}


def test_the_client_is_run(tmp_path: Path) -> None:
    asked = tmp_path / "asked.json"
    program = vllm_of(
        tmp_path, f"pathlib.Path({str(asked)!r}).write_text(json.dumps(sys.argv))",
        "folder = sys.argv[sys.argv.index('--result-dir') + 1]",
        f"pathlib.Path(folder, 'load.json').write_text({json.dumps(DETAILED)!r})", "print('benchmarked')",
    )  # fmt: skip
    said: list[str] = []
    with serving() as server:
        load = Load(server.base_url, 3, concurrency=2, max_tokens=9, prompt_tokens=11, seed=5)
        report = drive_with_bench(program, load, tmp_path / "load.log", said.append)
    assert report is not None
    assert (len(report.latencies_s), report.failed) == (2, 1)
    arguments = json.loads(asked.read_text())
    folder = arguments[arguments.index("--result-dir") + 1]
    assert arguments == bench_command(program, load, MODEL, MODEL, Path(folder), "load.json")
    assert said[0].startswith("sending requests: ") and "--num-prompts 3 --max-concurrency 2 --seed 5" in said[0]
    assert "--random-input-len 11 --random-output-len 9" in said[0]
    assert not Path(folder).exists()
    assert (tmp_path / "load.log").read_text() == "benchmarked\n"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["print('no module pandas')", "sys.exit(3)"], "failed (exit code 3, see {log}): no module pandas"),
        (["print('all well')"], "left no result: "),
    ],
    ids=["fails", "leaves nothing"],
)
def test_a_client_that_does_not_work(lines: list[str], why: str, tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "load.log"
    with serving() as server:
        assert drive_with_bench(vllm_of(tmp_path, *lines), Load(server.base_url, 3), log, said.append) is None
    assert why.format(log=log) in " ".join(said)
