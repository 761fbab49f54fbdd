#!/usr/bin/env python3
"""Record a window of a running vLLM server under nsys, in the three ways of docs/how-to/record-windows-with-nsys.md.

    python scripts/gpu/windows_under_nsys.py --nsys NSYS --out DIR [--only WAY ...]

The ways: `attached` starts nsys when the server, with CUDA graphs, has served a request already; `eager` does so with a
server without CUDA graphs; `whole` has nsys on from the server's start. Each sends requests before, in and after the
window. Prints a JSON line per way: tokens that went through the model in the window, as the requests have them; what
the analysis found; the layers that have GPU time. Exits with 1 if the counts of a window are not those of its requests.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import create_server
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.made_up_models import model_folder  # noqa: E402

LAYERS, EXPERTS, TOP_K = 4, 32, 4
WAYS = ("attached", "eager", "whole")
#: Lengths of prompts and answers, one request after the other.
BEFORE, INSIDE, AFTER = ((40, 12),), ((64, 20), (9, 30), (31, 5)), ((20, 8),)
#: Seconds that a server may take to begin, an answer to come, and nsys to write its report.
PATIENCE_S = 240.0
#: What a check says where something was found.
FOUND = ("warn", "fail")
TRACE = ("-t", "cuda,nvtx", "--cuda-graph-trace=node")


def main() -> None:
    """Run the ways; print what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nsys", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--cpu", action="store_true", help="Try the script without a GPU: NVTX alone.")
    options = parser.parse_args()
    rows = [run(way, options) for way in options.only]
    sys.exit(any(row["tokens"] != row["tokens_sent"] for row in rows))


def run(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """Serve, record the window, analyse: the row of a way."""
    folder = options.out / way
    folder.mkdir(parents=True)
    trace = ("-t", "nvtx") if options.cpu else TRACE
    port = free_port()
    server = server_command(port, eager=options.cpu or way == "eager", cpu=options.cpu)
    if way == "whole":
        command = [options.nsys, "profile", *trace, "-o", str(folder / "report"), *server]
    else:
        command = [options.nsys, "launch", f"--session-new={session_name(way)}", *trace, *server]
    path = [str(ROOT / "nvtxmoe" / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "NVTXMOE_ENABLE": "1",
        "NVTXMOE_MODE": "nsys",
        "NVTXMOE_WINDOW": "closed",
        "NVTXMOE_OUTPUT_DIR": str(folder / "sessions"),
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            record(way, options.nsys, process, port, folder)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    row = {"way": way, "tokens_sent": tokens_of(INSIDE), **analysed(folder, options.nsys)}
    print(json.dumps(row), flush=True)
    return row


def record(way: str, nsys: str, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    """Send requests before, in and after a window; end the server, and wait for nsys's report."""
    wait_for_health(process, port)
    complete(port, BEFORE)
    if way != "whole":
        ask(nsys, "start", f"--session={session_name(way)}", "-o", str(folder / "report"))
    (session,) = (folder / "sessions").iterdir()
    window("start", session)
    complete(port, INSIDE)
    window("stop", session)
    complete(port, AFTER)
    if way != "whole":
        ask(nsys, "stop", f"--session={session_name(way)}")
    os.kill(server_process(port), signal.SIGINT)
    process.wait(PATIENCE_S)


def session_name(way: str) -> str:
    """A name that no session of an earlier run has."""
    return f"{way}{os.getpid()}"


def window(action: str, session: Path) -> None:
    """Open or close the window."""
    ask(sys.executable, "-m", "nvtxmoe", "window", action, str(session), "--timeout", "60")


def ask(*command: str) -> None:
    """Run a command to its end; raise CalledProcessError if it fails."""
    subprocess.run(command, check=True, timeout=PATIENCE_S, stdout=sys.stderr)


def analysed(folder: Path, nsys: str) -> dict[str, Any]:
    """What the analysis makes of the report: its verdict, counts, and the layers that have GPU time."""
    results = folder / "results"
    report = str(folder / "report.nsys-rep")
    done = subprocess.run(
        [sys.executable, "-m", "nvtxmoe", "analyze", report, "-o", str(results), "--nsys", nsys],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    (folder / "analyze.log").write_text(done.stdout + done.stderr)
    made = results / "moe_expert_tracking"
    checks = json.loads((made / "moe_capture_validation.json").read_text())
    counted = rows_of(made / "moe_expert_activations.csv")
    times = rows_of(made / "moe_layer_timings.csv")
    return {
        "exit": done.returncode,
        "verdict": checks["verdict"],
        "not_passed": {check["name"]: check["status"] for check in checks["checks"] if check["status"] in FOUND},
        "tokens": sum(int(row["activation_count"]) for row in counted) / (TOP_K * LAYERS),
        "layers_with_gpu_time": len({row["layer_idx"] for row in times if int(row["kernel_time_ns"] or 0) > 0}),
        "steps_with_gpu_time": len({row["step"] for row in times if int(row["kernel_time_ns"] or 0) > 0}),
        "launched_by": sorted({row["launched_by"] for row in times}),
    }


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def server_command(port: int, *, eager: bool, cpu: bool) -> list[str]:
    """vLLM's API server with a made-up model."""
    shape: dict[str, Any] = {} if cpu else {"hidden_size": 1024, "moe_intermediate_size": 512}
    model = model_folder("qwen3_moe", LAYERS, EXPERTS, TOP_K, changes=shape)
    # A token is seen by the model once only where no prompt is kept: the same prompts are sent in each way.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--load-format", "dummy",
        "--skip-tokenizer-init", "--max-model-len", "256", "--max-num-seqs", "8", "--max-num-batched-tokens", "64",
        "--no-enable-prefix-caching", "--shutdown-timeout", "60", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    if eager:
        command.append("--enforce-eager")
    if cpu:
        return [*command, "--dtype", "float32", "--num-gpu-blocks-override", "64"]
    sizes = json.dumps({"cudagraph_capture_sizes": [1, 8, 64]})
    graphs = [] if eager else ["--compilation-config", sizes]
    return [*command, "--attention-backend", "TRITON_ATTN", "--gpu-memory-utilization", "0.2", *graphs]


def tokens_of(requests: Sequence[tuple[int, int]]) -> int:
    """Tokens that go through the model: all of the prompts, and of the answers all but the last."""
    return sum(length + most - 1 for length, most in requests)


def complete(port: int, requests: Sequence[tuple[int, int]]) -> None:
    """Send one request after the other, and wait for each answer."""
    for length, most in requests:
        body: Mapping[str, Any] = {
            "prompt": [(7 * place * place + 13 * length) % 256 for place in range(length)], "max_tokens": most,
            "temperature": 0, "ignore_eos": True, "detokenize": False, "return_token_ids": True,
        }  # fmt: skip
        answer = json.loads(read(f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode()))
        if len(answer["choices"][0]["token_ids"]) != most:
            raise RuntimeError(f"asked for {most} tokens, got {answer}")


def read(address: str, body: bytes | None = None) -> str:
    """Return what the server answers."""
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def wait_for_health(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until the server answers; raise RuntimeError if it ends or takes too long."""
    until = time.monotonic() + PATIENCE_S
    while True:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the server does not begin: see server.log")
        with contextlib.suppress(OSError, urllib.error.URLError):
            read(f"http://127.0.0.1:{port}/health")
            return
        time.sleep(0.5)


def server_process(port: int) -> int:
    """The process whose command line has the server's port and which is neither nsys nor its launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[:1] == [sys.executable.encode()] and str(port).encode() in words:
                return int(folder.name)
    raise RuntimeError("the server's process is gone")


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
