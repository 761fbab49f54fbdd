#!/usr/bin/env python3
"""Tokens per second of a whole `nvtxmoe profile` run, against the same vLLM without nsys and without nvtxmoe.

    NVTXMOE_NSYS=/path/to/nsys python scripts/bench/throughput.py --rounds 3 --budget-s 300 --out throughput.json
    python scripts/bench/throughput.py --small --mode moe          # a try-out on a CPU, without nsys

Processes take turns: bare, profiled, profiled, bare, bare, ... Each starts vLLM offline with a made-up model of random
weights (the shape of scripts/bench/overhead.py), warms up, and times batches of requests of equal length. A process's
result is the tokens per second of its median batch: now and then a kernel is compiled in a batch, which takes a second.
Loading, warm-up and the writing of the report are not in it; `process_s` is the whole process. The change is the mean
of the logarithms of the ratios of neighbours (a pair of a bare and a profiled process), with the interval of 95 % of
Student's t over pairs: with two pairs it is very wide.

Prints a line of JSON after each process, writes all of it with --out each time, and starts no process that would not
end within --budget-s. A process that fails is noted and the next one is started.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BARE, PROFILED = "bare", "profiled"
#: In the first ones kernels are compiled.
WARM_UP_BATCHES = 2
#: Quantiles 0.975 of Student's t, by degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
#: Changes of the model for a try-out on a CPU.
SMALL = {
    "hidden_size": 128, "head_dim": 32, "intermediate_size": 128, "moe_intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts": 16, "num_experts_per_tok": 2, "vocab_size": 512, "torch_dtype": "float32",
}  # fmt: skip


def generate(options: argparse.Namespace) -> None:
    """Start vLLM, time batches, and write the result: what the processes do."""
    from scripts.bench.overhead import SHAPE  # noqa: PLC0415

    folder = Path(tempfile.mkdtemp())
    shape = {**SHAPE, **(SMALL if options.small else {}), "num_hidden_layers": options.layers}
    (folder / "config.json").write_text(json.dumps(shape))
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    gpu: dict[str, Any] = {"gpu_memory_utilization": 0.9, "attention_backend": "TRITON_ATTN"}
    llm = LLM(
        model=str(folder), load_format="dummy", skip_tokenizer_init=True, max_model_len=2048, seed=0,
        max_num_seqs=options.batch, enable_prefix_caching=False, enforce_eager=options.small,
        tensor_parallel_size=options.tp, enable_expert_parallel=options.expert_parallel,
        **({} if options.small else gpu),
    )  # fmt: skip
    prompts = [
        {"prompt_token_ids": [3 + (number * 31 + at) % 500 for at in range(options.prompt_tokens)]}
        for number in range(options.batch)
    ]
    params = SamplingParams(max_tokens=options.tokens, temperature=0, detokenize=False, ignore_eos=True)
    for _ in range(WARM_UP_BATCHES):
        llm.generate(prompts, params, use_tqdm=False)
    seconds, tokens = [], 0
    for _ in range(options.batches):
        began = time.perf_counter()
        done = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
        tokens = sum(len(output.outputs[0].token_ids) for output in done)
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    result = {"tokens_a_batch": tokens, "batch_s": seconds, "device": device, "torch": torch.__version__}
    options.result.write_text(json.dumps({**result, "vllm": vllm.__version__}))


def run_one(kind: str, options: argparse.Namespace, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Run one process of a kind and return its figures, or why there are none."""
    result = folder / "result.json"
    run_options = [
        f"--{name}={getattr(options, name)}" for name in ("layers", "batch", "batches", "tokens", "prompt_tokens", "tp")
    ]
    run_options = [word.replace("_", "-", 1) if word.startswith("--prompt_") else word for word in run_options]
    command = [sys.executable, str(Path(__file__).resolve()), "--result", str(result), *run_options]
    command += ["--small"] if options.small else []
    command += ["--expert-parallel"] if options.expert_parallel else []
    env = {name: value for name, value in os.environ.items() if not name.startswith("NVTXMOE_")}
    if options.small:
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if kind == PROFILED:
        profile = [sys.executable, "-m", "nvtxmoe", "profile", "-o", str(folder / "profile"), "--mode", options.mode]
        profile += [] if options.analyze else ["--no-analyze"]
        profile += ["--trace", options.trace] if options.mode != "moe" else []
        env |= {name: value for name, value in os.environ.items() if name == "NVTXMOE_NSYS"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "analysis"), env.get("PYTHONPATH"))))
        command = [*profile, "--", *command]
    began = time.perf_counter()
    status = finished(command, env, folder / "log", timeout_s)
    outcome: dict[str, Any] = {"kind": kind, "process_s": round(time.perf_counter() - began, 2), "status": status}
    if not result.is_file():
        return {**outcome, "failed": (folder / "log").read_text(errors="replace")[-1500:]}
    measured = json.loads(result.read_text())
    outcome |= {name: measured[name] for name in ("device", "torch", "vllm", "tokens_a_batch")}
    outcome["tokens_per_s"] = round(measured["tokens_a_batch"] / statistics.median(measured["batch_s"]), 2)
    outcome["batch_s"] = [round(seconds, 4) for seconds in measured["batch_s"]]
    report = folder / "profile" / "report.nsys-rep"
    return {**outcome, "report_bytes": report.stat().st_size if report.is_file() else None}


def finished(command: list[str], env: dict[str, str], log: Path, timeout_s: float) -> int | str:
    """Run a command with its output in a file; end it, and all that it started, when its time is up."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"took more than {timeout_s:.0f} s"
        finally:
            end_group(child)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and of all that it started: the next one needs the GPU's memory."""
    for sign, wait_s in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(child.pid, sign)
            child.wait(wait_s)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def compared(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The change by profiling over the pairs of neighbours that both gave figures."""
    pairs = [
        dict(zip((a["kind"], b["kind"]), (a, b), strict=True)) for a, b in zip(runs[::2], runs[1::2], strict=False)
    ]
    logs = [
        math.log(pair[PROFILED]["tokens_per_s"] / pair[BARE]["tokens_per_s"])
        for pair in pairs
        if all("tokens_per_s" in pair.get(kind, {}) for kind in (BARE, PROFILED))
    ]
    rates = {
        kind: [r["tokens_per_s"] for r in runs if r["kind"] == kind and "tokens_per_s" in r]
        for kind in (BARE, PROFILED)
    }
    summary: dict[str, Any] = {"pairs": len(logs), "tokens_per_s": rates}
    if not logs:
        return {**summary, "change_pct": None, "change_pct_ci95": None}
    mean = statistics.fmean(logs)
    summary["change_pct"] = round(100 * math.expm1(mean), 3)
    if len(logs) < 2:
        return {**summary, "change_pct_ci95": None}
    half = STUDENT[min(len(logs) - 1, len(STUDENT)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    summary["change_pct_ci95"] = [round(100 * math.expm1(mean + sign * half), 3) for sign in (-1, 1)]
    return summary


def order(rounds: int) -> list[str]:
    """Kinds of process in turn: A B B A A B B A ..., two per round."""
    return [kind for number in range(rounds) for kind in ((BARE, PROFILED), (PROFILED, BARE))[number % 2]]


def main() -> int:
    """Run all processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="Pairs of processes.")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="Seconds for all processes together.")
    parser.add_argument("--mode", choices=["nsys", "moe", "both"], default="nsys")
    parser.add_argument("--trace", default="cuda,nvtx", help="What nsys traces.")
    parser.add_argument("--analyze", action="store_true", help="Analyse what was recorded: takes time after a run.")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32, help="Requests at a time.")
    parser.add_argument("--batches", type=int, default=6, help="Timed batches per process.")
    parser.add_argument("--tokens", type=int, default=128, help="Tokens of an answer.")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tp", type=int, default=1, help="Ranks, tensor parallel.")
    parser.add_argument("--expert-parallel", action="store_true", help="Ranks share out whole experts.")
    parser.add_argument("--small", action="store_true", help="A small model, eager, as for a CPU.")
    parser.add_argument("--keep", action="store_true", help="Keep reports and logs.")
    parser.add_argument("--out", type=Path, help="A JSON file, written after each process.")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result:
        generate(options)
        return 0
    return in_turn(options)


def in_turn(options: argparse.Namespace) -> int:
    """Run the processes in turn and print what is known after each of them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are ended, too
    base, began = Path(tempfile.mkdtemp(prefix="throughput-")), time.perf_counter()
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "result", "keep")}
    settings["budget_s"] = None if math.isinf(options.budget_s) else options.budget_s
    runs: list[dict[str, Any]] = []
    longest: dict[str, float] = {}
    for number, kind in enumerate(order(options.rounds)):
        left_s = options.budget_s - (time.perf_counter() - began)
        wanted_s = longest.get(kind, max(longest.values(), default=0.0))
        if left_s < max(10.0, 1.1 * wanted_s):
            print(json.dumps({"stopped": f"{left_s:.0f} s are left, a process takes {wanted_s:.0f} s"}), flush=True)
            break
        folder = base / f"{number}-{kind}"
        folder.mkdir()
        runs.append(run_one(kind, options, folder, min(left_s, 1800.0)))
        longest[kind] = max(longest.get(kind, 0.0), runs[-1]["process_s"])
        print(json.dumps(runs[-1]), flush=True)
        summary = {"settings": settings, **compared(runs), "runs": runs}
        if options.out:
            options.out.write_text(json.dumps(summary, indent=1) + "\n")
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(compared(runs)), flush=True)
    return 0 if runs and not any("failed" in run for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
