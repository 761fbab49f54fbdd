"""`nvtxmoe profile` around a server with engines in processes of their own, under the real nsys.

The engines emit only as they end, so whole counts show that the end was not cut off.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from contextlib import closing
from pathlib import Path
from socket import create_server

import pytest

from tests.profile.test_profile import activations
from tests.programs import emit_words
from tests.support.cli import Ran, files, refused
from tests.support.profile_runs import SERVER, Profile, free_port, has_ended, profile, start

pytestmark = pytest.mark.tried_again


def command(record: Path, *options: object, engines: int = emit_words.RANKS) -> list[object]:
    """The server's command line after --."""
    port = free_port()
    return [
        "--", sys.executable, SERVER, "--port", port, "--engines", engines, "--record", record, *options,
    ]  # fmt: skip


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "record.txt"


def events(record: Path) -> list[str]:
    return record.read_text().splitlines() if record.exists() else []


def nobody_is_left(record: Path) -> bool:
    pids = [int(pid) for pid in re.findall(r" is (\d+)", record.read_text())]
    return bool(pids) and all(has_ended(pid) for pid in pids)


def ended_by_itself(record: Path, out: Path) -> None:
    """The main process got SIGINT once, the engines nothing, and all they had to say is in the report."""
    found = [event for event in events(record) if " is " not in event]
    assert found[0] == f"main got signal {int(signal.SIGINT)}"
    assert sorted(found[1:]) == ["engine 0 ended by itself", "engine 1 ended by itself", "main ended by itself"]
    assert nobody_is_left(record)
    assert activations(out) == emit_words.expected()["activations"]


def test_a_load_and_an_end(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(
        out, "--num-requests", 20, "--concurrency", 4, *command(record, "--engine-seconds", 1), nsys=nsys_path
    )
    assert (ran.code, ran.err) == (0, ""), ran
    ended_by_itself(record, out)
    assert re.search(
        r"nvtxmoe: 20 requests in [\d.]+ s .*latency p50 .* p99 .* first token p50 .*, 0 failed\n", ran.out
    )
    assert {"server.log", "report.nsys-rep", "moe_expert_tracking/moe_summary.json"} <= files(out)
    assert "listening on" in (out / "server.log").read_text()
    assert "listening on" not in ran.out  # the progress of the load has the terminal
    assert "SIGTERM" not in ran.out


def test_a_server_that_takes_its_time(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """Ready late, without /health, all of its output shown."""
    out = tmp_path / "out"
    late = command(record, "--ready-after", 2, "--no-health")
    ran = profile(out, "--num-requests", 2, "--verbose", *late, nsys=nsys_path)
    assert ran.code == 0
    ended_by_itself(record, out)
    assert "listening on" in ran.out


def test_not_ready_in_time(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    late = command(record, "--ready-after", 30)
    ran = profile(out, "--num-requests", 2, "--ready-timeout", 1.5, "--stop-timeout", 60, *late, nsys=nsys_path)
    assert ran.code == 2
    assert "the server was not ready at http://127.0.0.1:" in ran.err
    assert "within 1.5 s. Give it longer with --ready-timeout" in ran.err
    assert "SIGTERM" not in ran.out
    assert not record.exists() or nobody_is_left(record)  # on a busy machine it ends before it writes
    assert {"server.log", "report.nsys-rep"} <= files(out)


def test_a_model_that_fails_to_load(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--num-requests", 2, *command(record, "--fail-to-load"), nsys=nsys_path)
    assert ran.code == 2
    assert ran.err == (
        f"nvtxmoe: {out}/server.log: the server ended before it was ready, with exit code 3. "
        "The end of its output is above\n"
    )
    assert f"nvtxmoe: the end of {out}/server.log:\n" in ran.out
    assert "  loading weights\n  RuntimeError: no such weights\n" in ran.out
    assert files(out) == {"server.log", "report.nsys-rep"}


def test_a_port_in_use(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    with closing(create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        ran = profile(tmp_path / "out", "--num-requests", 2, *command(record, "--port", port), nsys=nsys_path)
    refused(ran, f"port {port} is already in use")
    assert (events(record), files(tmp_path)) == ([], set())


def test_requests_that_fail(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--num-requests", 4, *command(record, "--faults", "ok,http500"), nsys=nsys_path)
    assert (ran.code, ran.err) == (1, "")
    assert "2 failed; 2 x HTTP 500: out of luck\n" in ran.out
    ended_by_itself(record, out)


def test_a_server_that_dies_under_the_load(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """Its engines see it and end; nobody has to be asked."""
    out = tmp_path / "out"
    dying = command(record, "--die-after", 3)
    ran = profile(out, "--num-requests", 40, "--concurrency", 1, "--stop-timeout", 20, *dying, nsys=nsys_path)
    assert (ran.code, ran.err) == (1, ""), ran
    assert re.search(r"[1-9]\d* failed; ", ran.out)
    assert "the command failed with exit code 4" in ran.out
    assert "  the engine core died\n" in ran.out
    assert nobody_is_left(record)
    assert "report.nsys-rep" in files(out)


def serving(running: Profile) -> bool:
    log = running.folder / "server.log"
    return log.exists() and "listening on" in log.read_text()


def ready(running: Profile, record: Path, engines: int) -> Profile:
    running.wait_for(lambda: serving(running) and sum(" is " in event for event in events(record)) == engines + 1)
    return running


def served(running: Profile, record: Path) -> Ran:
    """Ctrl-C once the server and its engines are up."""
    ready(running, record, emit_words.RANKS).interrupt()
    return running.finish()


def vllm(tmp_path: Path, record: Path, *options: object) -> list[object]:
    """A command that looks like vLLM's server: a script of the name `vllm`."""
    script = tmp_path / "vllm"
    drop = "sys.argv[1:] = [a for a in sys.argv[1:] if a not in ('serve', 'M')]"
    script.write_text(
        f"#!{sys.executable}\nimport runpy, sys\n{drop}\nsys.argv[-2:] = []  # --shutdown-timeout N\n"
        f"if __name__ == '__main__':\n    runpy.run_path({str(SERVER)!r}, run_name='__main__')\n"
    )
    script.chmod(0o755)
    return ["--", script, "serve", "M", *command(record, *options)[3:]]


def test_ctrl_c_on_a_server(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """No load of ours: it runs until Ctrl-C, which must reach nobody but `profile`."""
    out = tmp_path / "out"
    ran = served(start(out, *vllm(tmp_path, record, "--engine-seconds", 1), nsys=nsys_path), record)
    assert (ran.code, ran.err) == (0, ""), ran
    assert "--shutdown-timeout 90 is added" in ran.out
    assert "nvtxmoe: interrupted\n" in ran.out
    assert "listening on" in ran.out
    ended_by_itself(record, out)


def test_ctrl_c_under_the_load(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    slow = command(record, "--faults", "hang")
    running = start(out, "--num-requests", 1000, "--concurrency", 1, *slow, nsys=nsys_path)
    running.wait_for(lambda: (out / "server.log").exists() and "listening on" in (out / "server.log").read_text())
    ran = served(running, record)
    assert (ran.code, ran.err) == (0, ""), ran
    ended_by_itself(record, out)


def test_a_server_that_ends_with_an_error_when_asked(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    ran = profile(out, "--num-requests", 2, *command(record, "--exit-code", 5), nsys=nsys_path)
    assert ran.code == 0
    assert "nvtxmoe: the command ended with exit code 5 after it was asked to end\n" in ran.out
    ended_by_itself(record, out)


def test_a_server_that_does_not_obey_sigint(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """Only then is SIGTERM sent, again to the main process alone: still nothing is lost."""
    out = tmp_path / "out"
    stubborn = command(record, "--stubborn", "int")
    ran = profile(out, "--num-requests", 2, "--stop-timeout", 1, *stubborn, nsys=nsys_path)
    assert (ran.code, ran.err) == (0, ""), ran
    assert re.search(r"nvtxmoe: it has not ended yet: sending SIGTERM to \d+ \(python[\d.]*\)\n", ran.out)
    assert "SIGKILL" not in ran.out and "nsys stop" not in ran.out
    assert [event for event in events(record) if "signal" in event] == [f"main got signal {int(signal.SIGTERM)}"]
    assert activations(out) == emit_words.expected()["activations"]


def test_a_server_that_obeys_nobody(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """There is a report of what was recorded all the same, and nothing goes on running."""
    out = tmp_path / "out"
    deaf = command(record, "--stubborn", "term")
    ran = profile(out, "--num-requests", 2, "--stop-timeout", 1, "--no-analyze", *deaf, nsys=nsys_path)
    assert ran.code == 0
    assert "stopping the capture with `nsys stop`" in ran.out
    assert "sending SIGKILL to " in ran.out
    assert "nvtxmoe: the command had to be ended by force: what it recorded last may be missing\n" in ran.out
    assert files(out) == {"report.nsys-rep", "server.log"}
    assert nobody_is_left(record)


def test_impatience(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """A second Ctrl-C goes on to SIGTERM without waiting for the end of --stop-timeout."""
    out = tmp_path / "out"
    running = ready(start(out, *vllm(tmp_path, record, "--stubborn", "int"), nsys=nsys_path), record, emit_words.RANKS)
    running.interrupt()
    assert running.process.stdout is not None
    said = ""
    while "asking the command to end" not in said:
        said += running.process.stdout.readline()
    running.interrupt()
    ran = running.finish()
    assert ran.code == 0
    assert "sending SIGTERM to " in ran.out
    assert activations(out) == emit_words.expected()["activations"]


def test_sigterm_is_obeyed_like_ctrl_c(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    out = tmp_path / "out"
    running = ready(start(out, *vllm(tmp_path, record), nsys=nsys_path), record, emit_words.RANKS)
    running.process.send_signal(signal.SIGTERM)
    assert running.finish().code == 0
    ended_by_itself(record, out)


def test_a_server_of_another_kind_is_a_command_like_any_other(tmp_path: Path, record: Path, nsys_path: Path) -> None:
    """Without --num-requests it is not looked at as a server."""
    ran = profile(tmp_path / "out", "--no-analyze", *command(record, "--fail-to-load"), nsys=nsys_path)
    assert ran.code == 1
    assert files(tmp_path / "out") == {"report.nsys-rep", "command.log"}
    assert json.dumps("no such weights")[1:-1] in ran.out
