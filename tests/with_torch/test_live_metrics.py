"""Live metrics served with the real prometheus_client, and vLLM's own registry with them in it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nvtxmoe.capture.live.collector import Collector
from nvtxmoe.capture.live.own_server import serve
from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import SERIES
from nvtxmoe.capture.startup import live
from tests.support.kept_warnings import kept_warnings
from tests.support.live_ranks import Model, Rank, scraped, view_of
from tests.support.paths import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two ranks of one engine have published."""
    model = Model(experts=6, tp_size=2, expert_parallel=True)
    counts = np.random.default_rng(3).poisson(2.0, (5, 3, 6))
    for number in range(2):
        rank = Rank(tmp_path, model, number)
        for step, one in enumerate(counts):
            rank.step(step, one)
        rank.publish()
    return tmp_path


def series_of(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples of our series by full name and labels, in the order of the labels' definition."""
    labels = {one.full_name: one.labels for one in SERIES}
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in labels:
                key = tuple(sample.labels[label] for label in labels[sample.name])
                found.setdefault(sample.name, {})[key] = sample.value
    return found


def get(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def test_what_is_scraped_is_the_view(folder: Path) -> None:
    server = serve("127.0.0.1", 0, Collector(folder, Options()))
    try:
        text = get(server.server_port)
    finally:
        server.shutdown()
    found, expected = series_of(text), scraped(view_of(folder))
    del found["nvtxmoe_collect_seconds"], expected["nvtxmoe_collect_seconds"]
    assert found == expected
    assert text.count("# HELP ") == text.count("# TYPE ") == len(expected) + 1


def test_a_client_that_hangs_stops_no_other(folder: Path) -> None:
    server = serve("127.0.0.1", 0, Collector(folder, Options()))
    try:
        with (
            socket.create_connection(("127.0.0.1", server.server_port)) as one,
            socket.create_connection(("127.0.0.1", server.server_port)) as other,
        ):
            other.sendall(b"GET /metrics HTT")
            assert "nvtxmoe_ranks 2.0" in get(server.server_port)
            assert one.fileno() >= 0
    finally:
        server.shutdown()


def test_a_port_in_use_is_one_warning(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with kept_warnings() as warnings:
            live.serve_if_nobody_does(folder, "127.0.0.1", port, Collector(folder, Options()))
    assert len(warnings) == 1
    assert "live metrics are not served" in warnings[0]


def test_there_is_no_second_server_beside_vllm_s(folder: Path) -> None:
    (folder / live.SERVED).touch()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    live.serve_if_nobody_does(folder, "127.0.0.1", port, Collector(folder, Options()))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_a_failure_leaves_the_server_s_own_metrics(folder: Path) -> None:
    registry = CollectorRegistry()
    Counter("of_the_server", "x", registry=registry).inc()
    collector = Collector(folder, Options(top_k="many"))  # type: ignore[arg-type]
    registry.register(collector)
    with kept_warnings() as warnings:
        for _ in range(2):
            text = generate_latest(registry).decode()
            assert "of_the_server_total 1.0" in text
            assert "nvtxmoe_" not in text
    assert len(warnings) == 1


#: An API server of vLLM: asks for the registry that it serves, once through each name that vLLM has for the function.
#: Without vLLM's changes to torch, which is not imported then.
SERVES = """
import os, sys, types
sys.modules["vllm.env_override"] = types.ModuleType("vllm.env_override")
from pathlib import Path
from nvtxmoe.capture.startup import live
from nvtxmoe.capture.startup.settings import Settings
from prometheus_client import Counter, generate_latest
live.begin(Settings(enable=True, metrics=True))
Counter("vllm_like", "x", ["engine"]).labels("0").inc(3)
from vllm.v1.metrics.prometheus import get_prometheus_registry
registry = get_prometheus_registry()
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    get_prometheus_registry()
print(generate_latest(registry).decode())
print("served", (Path(os.environ["NVTXMOE_LIVE_DIR"]) / "served").exists())
"""


@pytest.mark.parametrize("multiprocess", [False, True])
def test_vllm_s_own_registry_has_them_too(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, multiprocess: bool
) -> None:
    """Also the one of prometheus_client's multiprocess mode, which vLLM uses for several API servers."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("NVTXMOE_", "PROMETHEUS_"))}
    env |= {"NVTXMOE_LIVE_DIR": str(folder), "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    if multiprocess:
        env["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path_factory.mktemp("multiproc"))
    done = subprocess.run(
        [sys.executable, "-c", SERVES], env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text, _, served = done.stdout.rpartition("served ")
    assert served.strip() == "True"
    assert 'vllm_like_total{engine="0"} 3.0' in text
    found, expected = series_of(text), scraped(view_of(folder))
    del found["nvtxmoe_collect_seconds"], expected["nvtxmoe_collect_seconds"]
    assert found == expected
    assert text.count("# TYPE nvtxmoe_ranks ") == 1
