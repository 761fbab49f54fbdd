"""Pages of metrics by the real collector, and a server that serves them."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.capture.live.collector import Collector
from nvtxmoe.capture.live.imbalance_time import ImbalanceTime, Slope
from nvtxmoe.capture.live.own_server import serve
from nvtxmoe.capture.live.samples import Options
from tests.support.live_ranks import Model, Rank

PLAIN = Options()
SLOPES = ImbalanceTime({(None, "decode"): [Slope("local_activations", (700.0, 900.0, 1100.0))]})
#: A server whose layers differ in which is first: by experts 3, by ranks and active experts 2.
MODEL = Model(layers=3, experts=8, tp_size=2, expert_parallel=True)
LOADS = np.array([[2, 2, 2, 2, 2, 2, 2, 2], [3, 3, 3, 3, 1, 1, 1, 1], [9, 0, 0, 0, 7, 0, 0, 0]])


def text_of(collector: Collector) -> str:
    """What a scrape gets."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return str(generate_latest(registry).decode())


class Served:
    """Ranks that publish LOADS for each step, and their collector."""

    def __init__(self, folder: Path, model: Model = MODEL, options: Options = PLAIN, slopes: bool = True) -> None:
        self.model = model
        self.ranks = [Rank(folder, model, number, options) for number in range(model.ranks)]
        self.collector = Collector(folder, options, SLOPES if slopes else None)
        self._step = 0

    def steps(self, number: int, loads: Any = LOADS) -> None:
        """Run steps of four tokens in decode, and publish them."""
        for rank in self.ranks:
            for step in range(self._step, self._step + number):
                rank.step(step, loads)
            rank.publish()
        self._step += number


@contextmanager
def serving(collector: Any) -> Iterator[str]:
    """Serve a collector with nvtxmoe's own server; yield the address."""
    server = serve("127.0.0.1", 0, collector)
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def answering(answer: Callable[[Any], object]) -> Iterator[str]:
    """Serve connections by a function of the socket; yield the address."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            answer(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()


def http(body: str, status: str = "200 OK") -> bytes:
    """An answer of HTTP."""
    return f"HTTP/1.0 {status}\r\nContent-Type: text/plain\r\n\r\n{body}".encode()
