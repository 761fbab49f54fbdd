"""An OpenAI-compatible server for tests: one main process, and engines in processes of their own, as vLLM has them.

    python tests/programs/serve_stand_in.py --port 8000 --engines 2 --record events.txt

The engines emit the whole run of emit_words.py only once the main process has told them to end, so a report that
lacks nothing shows that they were left to end by themselves. What happened goes to the record, a line an event.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.programs import emit_words

MODEL = "stand-in"
#: What a request may meet; "ok" is none of them.
FAULTS = ("ok", "http500", "cut", "error", "garbage", "reset", "hang", "empty")
HANG_S = 3.0


class StandIn(ThreadingHTTPServer):
    """The server. ``faults`` are what its requests meet in turn; ``bodies`` is what they asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", port: int = 0, faults: Sequence[str] = ("ok",), health: bool = True):
        self.faults, self.health = list(faults), health
        self.bodies: list[dict[str, Any]] = []
        self.active = self.most_active = 0
        self.headers_seen: list[dict[str, str]] = []
        self.lock = threading.Lock()
        super().__init__((host, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers /health, /v1/models, completions and chat completions, streamed or not."""

    server: StandIn
    answering = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health" and self.server.health:
            self._answer(200, {})
        elif self.path == "/v1/models":
            self._answer(200, {"data": [{"id": MODEL, "root": MODEL}]})
        else:
            self._answer(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults[len(self.server.bodies) % len(self.server.faults)]
            self.server.bodies.append({"path": self.path, **body})
            self.server.headers_seen.append(dict(self.headers))
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        self.answering = True
        try:
            time.sleep(0.01)
            self._complete(body, fault)
        finally:
            self._answered()

    def _answered(self) -> None:
        """No longer active: before the last bytes go out, as the client may send its next request once it has them."""
        with self.server.lock:
            self.server.active -= self.answering
        self.answering = False

    def _complete(self, body: dict[str, Any], fault: str) -> None:
        if fault == "http500":
            return self._answer(500, {"error": {"message": "out of luck"}})
        if fault == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if fault == "hang":
            time.sleep(HANG_S)
        if not body["stream"]:
            choices = [] if fault == "empty" else [{"text": "a b"}]
            return self._answer(200, {"choices": choices})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        pieces = [] if fault == "empty" else ["a", "b"]
        for piece in pieces:
            self._event(json.dumps({"choices": [{"text": piece}]}))
            if fault == "cut":
                return None
            if fault == "error":
                self._event(json.dumps({"error": {"message": "engine died"}}))
            if fault == "garbage":
                self._event("{")
        self._answered()
        self._event("[DONE]")
        return None

    def _event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self._answered()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def note(record: Path | None, text: str) -> None:
    """Append a line to the record, whole."""
    if record is not None:
        with record.open("a") as file:
            file.write(f"{text}\n")


def engine(rank: int, told: Connection, record: Path | None, seconds: float) -> None:
    """Wait to be told, then take a while to emit everything and end."""

    def signalled(number: int, frame: FrameType | None) -> None:
        note(record, f"engine {rank} got signal {number}")

    signal.signal(signal.SIGINT, signalled)
    signal.signal(signal.SIGTERM, signalled)
    note(record, f"engine {rank} is {os.getpid()}")
    while not told.poll(1.0):  # also when the main process is gone: the pipe is at its end
        pass
    time.sleep(seconds)
    emit_words.emit_rank(rank)
    note(record, f"engine {rank} ended by itself")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--engines", type=int, default=0)
    parser.add_argument("--engine-seconds", type=float, default=0.0)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--fail-to-load", action="store_true")
    parser.add_argument("--die-after", type=int, help="requests after which it dies")
    parser.add_argument("--no-health", action="store_true")
    parser.add_argument("--faults", default="ok")
    parser.add_argument("--stubborn", choices=["int", "term"], help="ignore SIGINT, or SIGTERM too")
    parser.add_argument("--exit-code", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    note(given.record, f"main is {os.getpid()}")
    time.sleep(given.ready_after)
    if given.fail_to_load:
        print("loading weights\nRuntimeError: no such weights", file=sys.stderr)
        raise SystemExit(3)
    stop = threading.Event()

    def asked(number: int, frame: FrameType | None) -> None:
        note(given.record, f"main got signal {number}")
        stop.set()

    ignored = {None: (), "int": (signal.SIGINT,), "term": (signal.SIGINT, signal.SIGTERM)}[given.stubborn]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number in ignored else asked)
    context = multiprocessing.get_context("spawn")
    pipes, engines = [], []
    for rank in range(given.engines):
        theirs, ours = context.Pipe(duplex=False)
        engines.append(context.Process(target=engine, args=(rank, theirs, given.record, given.engine_seconds)))
        engines[-1].start()
        theirs.close()
        pipes.append(ours)
    server = StandIn(given.host, given.port, given.faults.split(","), not given.no_health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening on {server.base_url}", flush=True)
    while not stop.wait(0.05):
        if given.die_after is not None and len(server.bodies) >= given.die_after:
            print("the engine core died", flush=True)
            os._exit(4)
    server.shutdown()
    for pipe in pipes:
        pipe.send("end")
    for one in engines:
        one.join()
    note(given.record, "main ended by itself")
    raise SystemExit(given.exit_code)


if __name__ == "__main__":
    main()
