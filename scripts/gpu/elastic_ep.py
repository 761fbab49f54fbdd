#!/usr/bin/env python3
"""Changes the number of expert-parallel ranks of a real `vllm serve` while it runs, and checks what capture recorded.

    python scripts/gpu/elastic_ep.py OUT --eager          # two ranks, three, two again, all on GPU 0
    python scripts/gpu/elastic_ep.py OUT --gpus 0 1 2     # a GPU for each rank

Every data-parallel rank is a `vllm serve` of its own (vLLM's external load balancing, without Ray); ranks may share a
GPU. `POST /scale_elastic_ep` to all of them changes their number. Before and after each change every rank answers
requests. Each worker has an oracle (``scripts/gpu/oracle.py``), which notes per step what was routed and how many ranks
vLLM's own groups have. Writes OUT/elastic.json and a log per server; prints a line per worker.

A worker whose ranks change must have recorded every step before the change exactly and none after it, with the number
of those steps among its losses. One that joins must have recorded all of its steps. Needs vLLM 0.33, which can't scale
to one rank: its workers end with an AssertionError in ``get_ep_all2all_manager``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.case_process import free_port  # noqa: E402
from scripts.gpu.elastic_compare import judged  # noqa: E402
from scripts.gpu.made_up_models import model_folder  # noqa: E402

HOST = "127.0.0.1"
LAYERS, EXPERTS, TOP_K = 4, 16, 4
#: Seconds in which a server may end by itself.
END_S = 20.0
POLL_S = 0.5
REQUESTS, CONCURRENT = 12, 6
#: Lets several ranks of a NCCL communicator use one GPU.
SHARED_GPU = "NCCL_MULTI_RANK_GPU_ENABLE"


class Server:
    """One rank's `vllm serve`.

    Parameters:
        size: data-parallel ranks that it starts with, itself among them.
        joins: whether the other ranks run already.
    """

    def __init__(self, rank: int, size: int, options: argparse.Namespace, model: Path, *, joins: bool = False) -> None:
        self.rank = rank
        self.port = free_port()
        self.log = options.out / f"rank{rank}{'-joined' if joins else ''}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                self.command(size, options, model),
                env=environment(rank, options, joins=joins),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, size: int, options: argparse.Namespace, model: Path) -> list[str]:
        """Its command line."""
        most = max(options.sizes)
        redundant = EXPERTS * size // min(options.sizes) - EXPERTS  # the fewest ranks hold every expert once
        eplb = {"num_redundant_experts": redundant, "use_async": False, "communicator": "pynccl"}
        graphs = ["--enforce-eager"] if options.eager else ["--compilation-config", json.dumps(GRAPHS)]
        return [
            options.python, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
            "--served-model-name", "made-up", "--load-format", "dummy", "--host", HOST, "--port", str(self.port),
            "--data-parallel-size", str(size), "--data-parallel-rank", str(self.rank),
            "--data-parallel-address", HOST, "--data-parallel-rpc-port", str(options.rpc_port),
            "--enable-expert-parallel", "--enable-eplb", "--eplb-config", json.dumps(eplb),
            "--enable-elastic-ep", "--elastic-ep-max-dp-size", str(most),
            "--all2all-backend", options.exchange, "--worker-cls", "scripts.gpu.oracle_worker.OracleWorker",
            "--max-model-len", "1024", "--max-num-batched-tokens", "256", "--max-num-seqs", "64",
            "--kv-cache-memory-bytes", str(1 << 30), "--gpu-memory-utilization", "0.2",
            "--attention-backend", "TRITON_ATTN", *graphs, *options.more,
        ]  # fmt: skip

    def wait_healthy(self, ends: float) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: it has ended, or time is up; the message has the log's last error.
        """
        while True:
            if self.process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"rank {self.rank} did not come up; see {self.log}")
            try:
                with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=5):
                    return
            except OSError:
                time.sleep(POLL_S)

    def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """Send a request with JSON and return the answer's."""
        request = urllib.request.Request(
            f"http://{HOST}:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def end(self) -> None:
        """End it as Ctrl-C does, and kill what is left."""
        group = os.getpgid(self.process.pid) if self.process.poll() is None else None
        if group is not None:
            os.kill(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(group, signal.SIGKILL)
                self.process.wait()


#: CUDA graphs of decode, without a compiler.
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}


def environment(rank: int, options: argparse.Namespace, *, joins: bool) -> dict[str, str]:
    """A server's variables: its GPU, capture in direct mode, the oracle's folder."""
    gpus = [options.gpus[number % len(options.gpus)] for number in range(max(options.sizes))]
    path = [str(ROOT / "nvtxmoe" / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "CUDA_VISIBLE_DEVICES": str(gpus[rank]),
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "moe",
        "NVTXMOE_LOG_INTERVAL": "1",
        "NVTXMOE_SESSION_DIR": str(options.out / "session"),
        "ORACLE_FOLDER": str(options.out),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": HOST,
        **({"VLLM_ELASTIC_EP_SCALE_UP_LAUNCH": "1"} if joins else {}),
        **({SHARED_GPU: "1"} if len(set(gpus)) < len(gpus) else {}),
    }


class Run:
    """The servers, and what is done with them.

    Attributes:
        parts: what happened, for the result: (what, seconds).
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ends = time.monotonic() + options.budget_s
        self.model = model_folder("qwen3_moe", LAYERS, EXPERTS, TOP_K, changes=options.config)
        self.servers: list[Server] = []
        self.parts: list[tuple[str, float]] = []
        self.chance = random.Random(5)

    def drive(self) -> None:
        """Serve at each number of ranks in turn."""
        first, *others = self.options.sizes
        self._timed(f"start {first}", lambda: self._start(first))
        self._timed("requests", self._requests)
        for size in others:
            self._timed(f"scale to {size}", lambda size=size: self._scale(size))
            self._timed("requests", self._requests)

    def end(self) -> None:
        """End every server, all at once."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(Server.end, self.servers))

    def _timed(self, what: str, do: Any) -> None:
        began = time.monotonic()
        do()
        self.parts.append((what, round(time.monotonic() - began, 1)))
        print(json.dumps(self.parts[-1]), flush=True)

    def _start(self, size: int) -> None:
        self.servers = [Server(rank, size, self.options, self.model) for rank in range(size)]
        for server in self.servers:
            server.wait_healthy(self.ends)

    def _scale(self, size: int) -> None:
        old = list(self.servers)
        joining = [Server(rank, size, self.options, self.model, joins=True) for rank in range(len(old), size)]
        self.servers += joining  # from now on they are ended, too
        with concurrent.futures.ThreadPoolExecutor() as pool:
            body = {"new_data_parallel_size": size, "drain_timeout": 60}
            left = max(10.0, self.ends - time.monotonic())
            list(pool.map(lambda server: server.post("/scale_elastic_ep", body, left), old))
        for server in joining:
            server.wait_healthy(self.ends)
        for server in old[size:]:
            server.end()
        self.servers = self.servers[:size]

    def _requests(self) -> None:
        """Prompts of different lengths to every rank."""
        bodies = [
            {
                "model": "made-up",
                "prompt": [self.chance.randrange(1, 250) for _ in range(self.chance.choice([3, 17, 40, 90]))],
                "max_tokens": self.chance.randrange(4, 16),
                "temperature": 0,
                "ignore_eos": True,
            }
            for _ in range(REQUESTS)
        ]
        with concurrent.futures.ThreadPoolExecutor(CONCURRENT * len(self.servers)) as pool:
            sent = [
                pool.submit(server.post, "/v1/completions", body, 60.0) for body in bodies for server in self.servers
            ]
            for answer in sent:
                answer.result()


def results_of(out: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Judge every worker that has an oracle, by their numbers of processes."""
    files = sorted(out.glob("*.oracle"), key=lambda file: int(file.stem))
    results = []
    for file in files:
        journals = list((out / "session").glob(f"ranks/*-{file.stem}.journal"))
        steps = pickle.loads(file.read_bytes())
        judgement = (
            judged(journals[0], steps) if journals else {"exact": False, "error": f"no journal of process {file.stem}"}
        )
        results.append({"worker": file.stem, "journal": journals[0].name if journals else None, **judgement})
    expected = sizes[0] + sum(max(0, after - before) for before, after in itertools.pairwise(sizes))
    if len(results) != expected:
        results.append({"exact": False, "error": f"{len(results)} of {expected} workers left an oracle"})
    return results


SIZES = "Ranks, one number after the other. Default: 2 3 2. vLLM 0.33 fails at a change to 1."
GPUS = f"GPUs that ranks take in turn. Default: 0 for all. {SHARED_GPU} is set if ranks share a GPU."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("out", type=Path, metavar="OUT", help="A new folder.")
    made.add_argument("--sizes", type=int, nargs="+", default=[2, 3, 2], help=SIZES)
    made.add_argument("--exchange", default="allgather_reducescatter", help="vLLM's --all2all-backend.")
    made.add_argument("--gpus", type=int, nargs="+", default=[0], help=GPUS)
    made.add_argument("--eager", action="store_true", help="No CUDA graphs.")
    made.add_argument("--config", type=json.loads, default={}, metavar="JSON", help="Further keys of config.json.")
    made.add_argument("--more", nargs="+", default=[], metavar="WORD", help="Further arguments of vllm serve.")
    made.add_argument("--budget-s", type=float, default=280.0, help="Everything ends after so many seconds.")
    made.add_argument("--python", default=sys.executable, help="The Python that has vLLM.")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, change, compare."""
    options = parser().parse_args(argv)
    if len(options.sizes) < 2 or min(options.sizes) < 1:
        parser().error("--sizes: give at least two numbers of ranks")
    options.out = options.out.resolve()
    options.out.mkdir(parents=True)
    options.rpc_port = free_port()
    run, error = Run(options), None
    try:
        run.drive()
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
        print(error, file=sys.stderr, flush=True)
    finally:
        run.end()
    results = results_of(options.out, options.sizes)
    document = {"sizes": options.sizes, "parts": run.parts, "error": error, "workers": results}
    (options.out / "elastic.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    for result in results:
        print(json.dumps(result), flush=True)
    return int(error is not None or not all(result["exact"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
