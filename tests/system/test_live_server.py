"""Live metrics of a real vLLM server with two tensor-parallel workers, scraped by a real Prometheus."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.capture.live.series import SERIES
from scripts.make_tiny_model import write_model
from tests.programs.run_vllm import ENVIRONMENT
from tests.support.cli import run
from tests.support.dashboard import RULES, names_in, queries
from tests.support.paths import ROOT
from tests.support.prometheus import free_port, running

# One vLLM at a time: waiting workers keep a core busy.
pytestmark = pytest.mark.xdist_group("vllm")

LAYERS, EXPERTS, TOP_K = 3, 16, 4
PATIENCE_S = 2400
REQUESTS = ((20, 7), (9, 12), (31, 5))
METRICS = {"NVTXMOE_METRICS": "1", "NVTXMOE_METRICS_EXPERTS": "1"}
Sums = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Served:
    """What came of the run.

    Attributes:
        scraped: the last scrape.
        asked: what Prometheus answered to each query of the dashboard.
        in_prometheus: the value of each of our series there, by name and labels.
        seen: what ``nvtxmoe top --once --json`` printed then.
        folder: the standard set of the same run.
    """

    scraped: str
    asked: dict[str, int]
    in_prometheus: dict[str, Sums]
    seen: dict[str, Any]
    folder: Path
    stderr: str


@pytest.fixture(scope="module")
def served(vllm_python: Path, prometheus_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A server answers requests, is scraped, and ends in order; then its journals are merged."""
    folder = tmp_path_factory.mktemp("served")
    model = write_model(folder / "model", "qwen3_moe", layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    port = free_port()
    with serving(vllm_python, model, folder, port) as process:
        wait_until_healthy(process, port, folder)
        with running(prometheus_bin, folder / "prometheus", [port], RULES) as prometheus:
            prometheus.wait_for("count(up)", 1)
            for length, most in REQUESTS:
                complete(port, length, most)
            tokens = sum(length + most - 1 for length, most in REQUESTS)
            prometheus.wait_for("sum(nvtxmoe_tokens_total)", tokens)
            scraped = read(f"http://127.0.0.1:{port}/metrics")
            seen = run("top", f"127.0.0.1:{port}", "--once", "--json", "--interval", "0.5").json
            asked = {f"{title}: {query}": len(prometheus.ask(query)) for title, query in queries()}
            in_prometheus = {
                one.full_name: {
                    tuple(labels[label] for label in one.labels): value
                    for labels, value in prometheus.ask(one.full_name)
                }
                for one in SERIES
            }
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    (session,) = (folder / "sessions").iterdir()
    return Served(
        scraped, asked, in_prometheus, seen, session / "moe_expert_tracking", (folder / "stderr.txt").read_text()
    )


@contextlib.contextmanager
def serving(
    python: Path, model: Path, folder: Path, port: int, settings: Mapping[str, str] = METRICS
) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's API server with two workers; PYTHONPATH is taken along, so that what serves may stand elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NVTXMOE_", "VLLM_"))}
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH"))))
    kept |= ENVIRONMENT | {
        "PYTHONPATH": path,
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "moe",
        "NVTXMOE_OUTPUT_DIR": str(folder / "sessions"),
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        **settings,
    }
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--load-format", "dummy",
        "--enforce-eager", "--dtype", "float32", "--skip-tokenizer-init", "--max-model-len", "128",
        "--num-gpu-blocks-override", "64", "--max-num-seqs", "3", "--max-num-batched-tokens", "16",
        "--no-enable-prefix-caching", "--tensor-parallel-size", "2", "--shutdown-timeout", "60",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with (folder / "stderr.txt").open("w") as log:
        process = subprocess.Popen(command, env=kept, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None, (folder / "stderr.txt").read_text()[-4000:]
        assert time.monotonic() < until, "the server does not begin"
        with contextlib.suppress(OSError, urllib.error.URLError):
            read(f"http://127.0.0.1:{port}/health")
            return
        time.sleep(0.5)


def read(address: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def complete(port: int, length: int, most: int) -> list[int]:
    """Send a request; return the tokens of the answer."""
    said = {
        "prompt": [(7 * place * place + 13 * length) % 256 for place in range(length)], "max_tokens": most,
        "temperature": 0, "ignore_eos": True, "detokenize": False, "return_token_ids": True,
    }  # fmt: skip
    answer = json.loads(read(f"http://127.0.0.1:{port}/v1/completions", json.dumps(said).encode()))
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens


def test_sums_in_prometheus_are_the_standard_set(served: Served) -> None:
    """Each expert of each layer, exactly; both workers see all tokens, which count once."""
    with (served.folder / "moe_expert_activations.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = {(row["layer_idx"], row["expert_id"]): float(row["activation_count"]) for row in rows}
    found = served.in_prometheus["nvtxmoe_expert_assignments_total"]
    assert len(found) == LAYERS * EXPERTS
    zero = dict.fromkeys(found, 0.0)
    assert found == zero | expected
    assert sum(found.values()) > 0
    by_layer = {(str(layer),): sum(v for k, v in expected.items() if k[0] == str(layer)) for layer in range(LAYERS)}
    assert served.in_prometheus["nvtxmoe_layer_assignments_total"] == by_layer


def test_steps_and_tokens_are_those_of_the_run(served: Served) -> None:
    tokens = served.in_prometheus["nvtxmoe_tokens_total"]
    assert tokens == {
        ("0", "prefill"): sum(length for length, _ in REQUESTS),
        ("0", "decode"): sum(most - 1 for _, most in REQUESTS),
    }
    validation = json.loads((served.folder / "moe_capture_validation.json").read_text())
    steps = served.in_prometheus["nvtxmoe_steps_total"]
    assert set(steps) == {("0",), ("1",)}
    assert steps[("0",)] == steps[("1",)] > 0
    assert sum(steps.values()) == validation["selection"]["steps_captured"]  # of both ranks
    assert served.in_prometheus["nvtxmoe_ranks"] == {(): 2}
    assert set(served.in_prometheus["nvtxmoe_dropped_steps_total"].values()) == {0}


def test_top_shows_the_sums_of_the_series(served: Served) -> None:
    """Between requests: its cells are each expert's sum over the layer's mean, and rates are zero."""
    layers = {row["layer"]: row for row in served.seen["layers"]}
    assert set(layers) == set(range(LAYERS))
    by_expert = served.in_prometheus["nvtxmoe_expert_assignments_total"]
    for (layer,), total in served.in_prometheus["nvtxmoe_layer_assignments_total"].items():
        cells = [by_expert[layer, str(expert)] * EXPERTS / total for expert in range(EXPERTS)]
        assert layers[int(layer)]["heat"] == pytest.approx(cells)
        never_hit = served.in_prometheus["nvtxmoe_layer_experts_never_hit"][(layer,)]
        assert layers[int(layer)]["experts_never_hit"] == never_hit == cells.count(0.0)
    assert (served.seen["ranks"], set(served.seen["dropped_steps"].values())) == (2, {0})
    assert (served.seen["tokens_per_s"], served.seen["steps_per_s"]) == (0, 0)


def test_vllm_s_own_metrics_are_beside_them(served: Served) -> None:
    assert "\nvllm:num_requests_running{" in served.scraped
    assert "\n# TYPE nvtxmoe_tokens_total counter\n" in served.scraped
    assert served.scraped.count("# TYPE nvtxmoe_ranks ") == 1


def test_queries_of_the_dashboard_have_data(served: Served) -> None:
    """Those of what one machine without expert parallelism and without a layer model shows."""
    without = ("ep_rank", "eplb", "estimated")
    here = {query: number for query, number in served.asked.items() if not any(name in query for name in without)}
    assert len(here) > 12
    assert not [query for query, number in here.items() if not number]
    assert all(names_in(query) for query in here)


def test_nothing_went_wrong(served: Served) -> None:
    said = [line for line in served.stderr.splitlines() if "nvtxmoe[" in line]
    assert [line.partition("WARNING: ")[2][:31] for line in said] == ["NVTXMOE_METRICS_EXPERTS is on: "]
    assert "capture complete" in served.stderr
