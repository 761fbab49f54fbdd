"""What a command says of itself: which Python it runs, whether it is a server, where it listens."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profile import interpreter
from nvtxmoe.profile.server import Server, address, check_port, is_vllm_server, option, patient
from tests.support.cli import refused, run
from tests.support.profile_plans import dry_run, executable, forget_settings, shown_command

SERVE = ["vllm", "serve", "M"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


# The command's Python


def scripts(tmp_path: Path) -> dict[str, Path]:
    python = sys.executable
    return {
        "direct": executable(tmp_path / "direct", f"#!{python} -E", "print(1)"),
        "by env": executable(tmp_path / "env", f"#!/usr/bin/env -S {python}", "print(1)"),
        "long path": executable(tmp_path / "long", "#!/bin/sh", f'\'\'\'exec\' "{python}" "$0" "$@"', "' '''"),
    }


@pytest.mark.parametrize("kind", ["direct", "by env", "long path"])
def test_a_script_names_its_python(kind: str, tmp_path: Path) -> None:
    assert interpreter.python_of([str(scripts(tmp_path)[kind]), "serve"]) == Path(sys.executable)


def test_python_itself(tmp_path: Path) -> None:
    link = tmp_path / "python3.11"
    link.symlink_to(sys.executable)
    assert interpreter.python_of([str(link), "x.py"]) == link  # not resolved: a virtual environment is its link


@pytest.mark.parametrize("first", ["#!/bin/bash", "#!/usr/bin/env bash", "\x7fELF", ""])
def test_a_command_that_does_not_say(first: str, tmp_path: Path) -> None:
    command = [str(executable(tmp_path / "start", first, "exec python x.py"))]
    assert interpreter.python_of(command) is None
    found = interpreter.examine(command)
    assert (found.path, found.certain, found.nvtx) == (Path(sys.executable), False, "0.2.11")


def test_the_user_is_told_which_python_was_asked(nsys: Callable[..., Path]) -> None:
    ran = dry_run("--nsys", nsys(), "--", "env", "python", "x.py")
    assert f"# the command does not say which Python it runs; {sys.executable} is asked" in ran.out
    assert "does not say" not in dry_run("--nsys", nsys(), "--python", sys.executable, "--", "env", "x").out


def test_no_such_command(tmp_path: Path) -> None:
    refused(run("profile", "-o", tmp_path / "out", "--", "no-such-thing"), "no such command: no-such-thing. Give one")
    assert not (tmp_path / "out").exists()


def test_options_end_where_the_command_begins(nsys: Callable[..., Path]) -> None:
    ran = dry_run("--nsys", nsys(), sys.executable, "-o", "x", "--mode", "moe")
    assert shown_command(ran)[-5:] == [sys.executable, "-o", "x", "--mode", "moe"]


# Servers


@pytest.mark.parametrize(
    ("command", "is_server"),
    [
        (["vllm", "serve", "M"], True),
        (["/venv/bin/vllm", "serve", "M"], True),
        (["python", "-m", "vllm.entrypoints.openai.api_server"], True),
        (["python", "-m", "vllm.entrypoints.cli.main", "serve"], True),
        (["numactl", "-N0", "vllm", "serve"], True),
        (["vllm", "bench", "serve"], False),
        (["python", "serve.py", "serve"], False),
    ],
)
def test_servers_are_told_from_scripts(command: list[str], is_server: bool) -> None:
    assert is_vllm_server(command) is is_server
    assert ("--shutdown-timeout" in patient(command, 120, None)) is is_server


def test_the_engine_gets_time_to_end() -> None:
    assert patient(SERVE, 120, None) == [*SERVE, "--shutdown-timeout", "90"]
    assert patient(SERVE, 1, "0.32.0+cpu") == [*SERVE, "--shutdown-timeout", "1"]
    assert patient(SERVE, 120, "0.19.1") == SERVE
    for own in (["--shutdown-timeout", "5"], ["--shutdown-timeout=5"]):
        assert patient([*SERVE, *own], 120, None) == [*SERVE, *own]


def test_an_engine_that_will_be_killed_is_worth_a_note(nsys: Callable[..., Path]) -> None:
    ran = dry_run(
        "--nsys", nsys(), "--", sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--shutdown-timeout=0"
    )
    assert "# --shutdown-timeout 0 makes vLLM kill its engine" in ran.out


def test_where_a_server_listens() -> None:
    assert address(SERVE) == Server("", 8000)
    assert address([*SERVE, "--port", "81", "--host=10.0.0.1"]) == Server("10.0.0.1", 81)
    assert address([*SERVE, "--port=81"], "localhost", 82) == Server("localhost", 82)
    assert option([*SERVE, "--port", "1", "--port=2"], "--port") == "2"
    assert option([*SERVE, "--port"], "--port") is None
    assert [Server(host, 1).base_url for host in ("", "0.0.0.0", "::", "::1", "box")] == [
        "http://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:1", "http://[::1]:1", "http://box:1",
    ]  # fmt: skip
    with pytest.raises(NvtxmoeError, match="--port x of the command is no port"):
        address([*SERVE, "--port", "x"])


@pytest.mark.parametrize("listens", ["", "0.0.0.0", "127.0.0.1", "localhost"])
def test_a_port_in_use(listens: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(NvtxmoeError, match=f"port {port} is already in use.*--port"):
            check_port(Server(listens, port))
    check_port(Server(listens, port))
