"""``nvtxmoe window`` against a socket of this user that answers something else than a rank: one line, code 2."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.formats.window_socket import Control
from tests.support.cli import refused, run

GOOD: dict[str, Any] = {
    "rank": 0, "world_size": 1, "engine": 0, "next_step": 7, "windows": 0, "first": 3, "last": 5, "failure": None,
    "window": {"number": 1, "first": 3, "last": None, "steps": 2, "tokens": 9},
}  # fmt: skip


@contextmanager
def answering(session: Path, answer: bytes, *, endless: bool = False) -> Iterator[None]:
    """A socket that gives this answer to every request, or without a request and an end."""
    control = Control(session, create=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(control.address("rank0-1.sock"))
    listener.listen()

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    while endless or connection.recv(1 << 16):
                        connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        control.close()
        thread.join()


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def without(*path: str) -> dict[str, Any]:
    """GOOD without the value at a path."""
    changed: dict[str, Any] = json.loads(json.dumps(GOOD))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


LACKING: list[tuple[str, ...]] = [("world_size",), ("engine",), ("next_step",), ("windows",)]
LACKING += [("window", name) for name in ("number", "first", "steps", "tokens")]
CHANGED: list[dict[str, Any]] = [
    {"window": []}, {"window": "x"}, {"next_step": "7"}, {"next_step": None}, {"engine": 1.5}, {"windows": True},
    {"world_size": 1 << 40}, {"world_size": 0}, {"next_step": 1 << 80}, {"failure": 5},
    {"window": {**GOOD["window"], "last": "x"}},
]  # fmt: skip


@pytest.mark.parametrize("answer", [*(without(*path) for path in LACKING), *({**GOOD, **one} for one in CHANGED)])
def test_answers_without_what_is_read_from_them(tmp_path: Path, answer: dict[str, Any]) -> None:
    with answering(tmp_path, line(answer)):
        refused(run("window", "status", tmp_path), "rank 0 (process 1): its answer has no usable ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"garbage\n", "no JSON"),
        (b"\xff\n", "no JSON"),
        (b"[" * 9000 + b"\n", "no JSON"),
        (b"[]\n", "no JSON object"),
        (b"{}\n", "no usable world_size, engine, next_step, windows"),
        (b'{"error": ["\\u001b[2J"]}\n', "[2J"),
        (b"", "does not answer"),
    ],
)
@pytest.mark.parametrize("action", ["status", "start", "stop"])
def test_nonsense(tmp_path: Path, action: str, answer: bytes, said: str) -> None:
    with answering(tmp_path, answer):
        refused(run("window", action, tmp_path, "--timeout", "0.3"), said)


def test_an_answer_without_an_end(tmp_path: Path) -> None:
    with answering(tmp_path, b"x" * 10_000, endless=True):
        refused(run("window", "status", tmp_path, "--timeout", "5"), "too long")


@pytest.mark.parametrize("lost", ["first", "last"])
def test_answers_to_a_stop_without_its_steps(tmp_path: Path, lost: str) -> None:
    """The same answer to status and stop: only that to the stop must have these."""
    with answering(tmp_path, line(without(lost))):
        assert run("window", "status", tmp_path).code == 0
        refused(run("window", "stop", tmp_path), f"no usable {lost}")


def test_a_good_answer(tmp_path: Path) -> None:
    with answering(tmp_path, line(GOOD)):
        ran = run("window", "status", tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert "Window 1 is open on rank 0, from step 3 on: 2 steps, 9 tokens." in ran.out
