"""A real Prometheus that scrapes some ports of this machine every second."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 600


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Prometheus:
    """What runs; ``ask`` is an instant query."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series."""
        address = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            said: dict[str, Any] = json.load(answer)
        assert said["status"] == "success", said
        return [(one["metric"], float(one["value"][1])) for one in said["data"]["result"]]

    def value(self, query: str) -> float | None:
        """The one value of a query, None without any."""
        found = self.ask(query)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def wait_for(self, query: str, wanted: float) -> None:
        """Until a query has this value."""
        until = time.monotonic() + PATIENCE_S
        while (found := self.value(query)) != wanted:
            assert time.monotonic() < until, f"{query} is {found}, not {wanted}"
            time.sleep(0.5)


@contextlib.contextmanager
def running(binaries: Path, folder: Path, ports: Sequence[int], rules: Path) -> Iterator[Prometheus]:
    """Prometheus with these targets, until the block ends."""
    folder.mkdir(parents=True)
    targets = json.dumps([f"127.0.0.1:{port}" for port in ports])
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{json.dumps(str(rules))}]\n"
        f"scrape_configs: [{{job_name: vllm, static_configs: [{{targets: {targets}}}]}}]\n"
    )
    port = free_port()
    command = [str(binaries / "prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log.txt").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while not _ready(port):
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < until, "Prometheus does not begin"
                time.sleep(0.2)
            yield Prometheus(port)
        finally:
            process.kill()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False
