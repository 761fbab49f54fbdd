"""A real vLLM server with two tensor-parallel workers: scraped by a real Prometheus, recorded in windows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.capture.live.series import SERIES
from nvtxmoe.formats.journal import RANKS, SUFFIX, Journal
from nvtxmoe.formats.schema import counts_dtype
from scripts.make_tiny_model import write_model
from tests.programs.run_vllm import ENVIRONMENT
from tests.support.cli import run
from tests.support.dashboard import RULES, queries
from tests.support.journal_reader import records_of_journal
from tests.support.paths import ROOT
from tests.support.prometheus import free_port, running
from tests.support.vllm_forks import PATIENCE_S, Forked, Forks
from tests.support.waiting import wait_until

LAYERS, EXPERTS, TOP_K = 3, 16, 4
#: Lengths of prompts and answers, one request after the other: while Prometheus scrapes, in the first window.
SCRAPED = ((20, 7), (9, 12), (31, 5))
#: Outside of windows, and in the second and the third.
REQUESTS = ((20, 7), (9, 12))
#: After these two, and in the last window.
OTHERS = ((31, 5),)
#: The first window is open when the server starts.
SETTINGS = {"NVTXMOE_METRICS": "1", "NVTXMOE_METRICS_EXPERTS": "1", "NVTXMOE_WINDOW": "open"}
Sums = dict[tuple[str, ...], float]


@dataclass(frozen=True)
class Scraped:
    """What live metrics showed at the end of the first window.

    Attributes:
        text: the last scrape.
        asked: what Prometheus answered to each query of the dashboard.
        in_prometheus: the value of each of our series there, by name and labels.
        seen: what ``nvtxmoe top --once --json`` printed then.
    """

    text: str
    asked: dict[str, int]
    in_prometheus: dict[str, Sums]
    seen: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What came of the run.

    Attributes:
        answers: tokens of the answers to REQUESTS, outside of windows and in the second and third.
        ended: what ``nvtxmoe window stop --json`` printed, by window from the first.
    """

    scraped: Scraped
    answers: Sequence[list[list[int]]]
    ended: Sequence[dict[str, Any]]
    session: Path
    stderr: str

    def window(self, number: int) -> Path:
        """The standard set of a window."""
        return self.session / "windows" / str(number) / "moe_expert_tracking"


def serve(forks: Forks, prometheus_bin: Path, folder: Path) -> Served:
    """Two windows after the first are opened and closed; the server ends in order while a fourth one is open."""
    model = write_model(folder / "model", "qwen3_moe", layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    port = free_port()

    def answers(requests: Sequence[tuple[int, int]]) -> list[list[int]]:
        return [_complete(port, length, most) for length, most in requests]

    with _serving(forks, model, folder, port, SETTINGS, ("--shutdown-timeout", "60")) as process:
        _wait_until_healthy(process, port, folder)
        (session,) = (folder / "sessions").iterdir()
        scraped = _scraped(prometheus_bin, folder / "prometheus", port)
        ended = [_window("stop", session)]
        found = [answers(REQUESTS)]
        for _ in range(2):
            _window("start", session)
            found.append(answers(REQUESTS))
            ended.append(_window("stop", session))
            answers(OTHERS)
        _window("start", session)
        answers(OTHERS)
        os.kill(process.pid, signal.SIGTERM)
        process.wait()
    return Served(scraped, found, ended, session, (folder / "stderr.txt").read_text())


@dataclass(frozen=True)
class Interrupted:
    """What a server left that was ended as a terminal's Ctrl-C does.

    Attributes:
        journals: names of its workers' journals.
        stderr: all that its processes wrote.
    """

    session: Path
    journals: list[str]
    stderr: str


def serve_until_ctrl_c(forks: Forks, folder: Path) -> Interrupted:
    """Answer REQUESTS; then all processes get SIGINT, and vLLM kills its workers: its shutdown by default.

    Whether a worker can write its end before that is a matter of speed. Here none can: all are stopped, when they have
    written what they counted.
    """
    model = write_model(folder / "model", "qwen3_moe", layers=LAYERS, experts=EXPERTS, top_k=TOP_K)
    port = free_port()
    with _serving(forks, model, folder, port, {}, ()) as process:
        _wait_until_healthy(process, port, folder)
        for length, most in REQUESTS:
            _complete(port, length, most)
        (session,) = (folder / "sessions").iterdir()
        journals = sorted((session / RANKS).glob(f"*{SUFFIX}"))
        for journal in journals:
            wait_until(lambda: _activations(journal) == LAYERS * TOP_K * tokens_of(REQUESTS))  # noqa: B023
            _stop(int(journal.stem.partition("-")[2]))
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    return Interrupted(session, [journal.name for journal in journals], (folder / "stderr.txt").read_text())


def _activations(journal: Path) -> int:
    """Activations in a journal that may still be written."""
    payloads = (payload for event, _, payload in records_of_journal(Journal(journal)) if event == "counts")
    return sum(int(np.frombuffer(payload, counts_dtype(EXPERTS))["counts"].sum()) for payload in payloads)


def _stop(pid: int) -> None:
    """Stop a process, which then neither runs nor gets a signal but SIGKILL."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T"))


def tokens_of(requests: Sequence[tuple[int, int]]) -> int:
    """Tokens that go through the model: all of the prompts, and of the answers all but the last."""
    return sum(length + most - 1 for length, most in requests)


def _scraped(prometheus_bin: Path, folder: Path, port: int) -> Scraped:
    with running(prometheus_bin, folder, [port], RULES) as prometheus:
        prometheus.wait_for("count(up)", 1)
        for length, most in SCRAPED:
            _complete(port, length, most)
        prometheus.wait_for("sum(nvtxmoe_tokens_total)", tokens_of(SCRAPED))  # of one worker: both see all tokens
        prometheus.wait_for("max(nvtxmoe_steps_total) - min(nvtxmoe_steps_total)", 0)
        text = _read(f"http://127.0.0.1:{port}/metrics")
        seen = run("top", f"127.0.0.1:{port}", "--once", "--json", "--interval", "0.5").json
        asked = {f"{title}: {query}": len(prometheus.ask(query)) for title, query in queries()}
        in_prometheus = {
            one.full_name: {
                tuple(labels[label] for label in one.labels): value for labels, value in prometheus.ask(one.full_name)
            }
            for one in SERIES
        }
    return Scraped(text, asked, in_prometheus, seen)


def _window(action: str, session: Path) -> dict[str, Any]:
    done = run("window", action, session, "--json", "--timeout", 60)
    assert done.code == 0, done.err
    found: dict[str, Any] = done.json
    return found


@contextlib.contextmanager
def _serving(
    forks: Forks, model: Path, folder: Path, port: int, settings: Mapping[str, str], options: Sequence[str]
) -> Iterator[Forked]:
    """vLLM's API server with two workers; PYTHONPATH is taken along, so that what serves may stand elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NVTXMOE_", "VLLM_"))}
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "analysis"), os.environ.get("PYTHONPATH"))))
    kept |= ENVIRONMENT | {
        "PYTHONPATH": path,
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "moe",
        "NVTXMOE_OUTPUT_DIR": str(folder / "sessions"),
        **settings,
    }
    arguments = [
        "--model", str(model),
        "--load-format", "dummy", "--enforce-eager", "--dtype", "float32", "--skip-tokenizer-init",
        "--max-model-len", "128",
        "--num-gpu-blocks-override", "64", "--max-num-seqs", "3", "--max-num-batched-tokens", "16",
        "--no-enable-prefix-caching", "--tensor-parallel-size", "2",
        "--host", "127.0.0.1", "--port", str(port), *options,
    ]  # fmt: skip
    (folder / "spec.json").write_text(json.dumps({"arguments": arguments}))
    process = forks.begin(folder, kept, "serve_vllm")
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(process: Forked, port: int, folder: Path) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        assert not process.has_ended(), (folder / "stderr.txt").read_text()[-4000:]
        assert time.monotonic() < until, "the server does not begin"
        with contextlib.suppress(OSError, urllib.error.URLError):
            _read(f"http://127.0.0.1:{port}/health")
            return
        time.sleep(0.5)


def _read(address: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def _complete(port: int, length: int, most: int) -> list[int]:
    """Send a request; return the tokens of the answer."""
    said = {
        "prompt": [(7 * place * place + 13 * length) % 256 for place in range(length)], "max_tokens": most,
        "temperature": 0, "ignore_eos": True, "detokenize": False, "return_token_ids": True,
    }  # fmt: skip
    answer = json.loads(_read(f"http://127.0.0.1:{port}/v1/completions", json.dumps(said).encode()))
    tokens: list[int] = answer["choices"][0]["token_ids"]
    return tokens
