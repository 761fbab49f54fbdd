"""Driving a load with a progress bar; with vLLM's own bench client where the profiled environment has it."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nvtxmoe.printing.console import is_terminal
from nvtxmoe.profile.interpreter import Interpreter
from nvtxmoe.profile.load_client import Load, drive, models
from nvtxmoe.profile.load_report import LoadReport
from nvtxmoe.profile.log_tee import last_lines


def drive_with_bar(load: Load) -> LoadReport:
    """Send a load with our own client, with a bar on standard error where that is a terminal.

    Raises:
        NvtxmoeError: the endpoint can't be reached, or it names no model.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not is_terminal(sys.stderr)) as bar:
        task = bar.add_task("requests", total=load.num_requests, failed="")

        def done(report: LoadReport) -> None:
            bar.update(task, completed=report.finished, failed=f"{report.failed:,} failed" if report.failed else "")

        return asyncio.run(drive(load, done))


def bench_program(command: Sequence[str], python: Interpreter) -> Path | None:
    """The `vllm` of the profiled environment, None where there is none."""
    if not python.has_vllm:
        return None
    path = shutil.which(command[0])
    candidate_beside = python.path.parent / "vllm"
    for candidate in (Path(path) if path else candidate_beside, candidate_beside):
        if candidate.name == "vllm" and os.access(candidate, os.X_OK):
            return candidate
    return None


def bench_command(program: Path, load: Load, model: str, tokenizer: str, folder: Path, result: str) -> list[str]:
    """The command line of vLLM's bench client for a load; it writes its figures to ``folder/result``."""
    return [
        str(program), "bench", "serve", "--backend", "openai-chat" if load.chat else "openai",
        "--endpoint", "/v1/chat/completions" if load.chat else "/v1/completions",
        "--base-url", load.api.removesuffix("/v1"), "--model", tokenizer, "--served-model-name", model,
        "--dataset-name", "random", "--random-input-len", str(load.prompt_tokens),
        "--random-output-len", str(load.max_tokens), "--num-prompts", str(load.num_requests),
        "--max-concurrency", str(load.concurrency), "--seed", str(load.seed),
        "--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,90,99",
        "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", result,
    ]  # fmt: skip


def drive_with_bench(program: Path, load: Load, log: Path, show_message: Callable[[str], None]) -> LoadReport | None:
    """Send a load with vLLM's bench client; its output goes to ``log``, its progress bar to a terminal.

    Returns:
        None when the client failed; ``show_message`` was told why.

    Raises:
        NvtxmoeError: the endpoint can't be reached, or it names no model.
    """
    served = asyncio.run(models(load))[0]
    with tempfile.TemporaryDirectory(prefix="nvtxmoe-load-") as folder, log.open("ab") as output:
        command = bench_command(
            program, load, load.model or served["id"], served.get("root") or served["id"], Path(folder), "load.json"
        )
        show_message(f"sending requests: {shlex.join(command)}")
        errors = None if is_terminal(sys.stderr) else output
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, check=False
            ).returncode
            result = json.loads(Path(folder, "load.json").read_text()) if code == 0 else None
        except (OSError, ValueError) as error:
            code, result = 1, None
            show_message(f"vLLM's bench client left no result: {error}")
    if result is None:
        show_message(f"vLLM's bench client failed (exit code {code}, see {log}): " + "; ".join(last_lines(log, 1)))
        return None
    return bench_report(result, load.num_requests)


def bench_report(result: dict[str, object], num_prompts: int) -> LoadReport:
    """The report of a bench client's detailed result, in which every list has one value a request.

    Parameters:
        result: the result file.
        num_prompts: how many requests were asked for.
    """
    report = LoadReport(seconds=_number(result.get("duration")))
    errors = [" ".join(str(error).split())[-100:] for error in _list(result.get("errors"))]
    firsts = [_number(value) for value in _list(result.get("ttfts"))]
    latencies = [_number(value) for value in _list(result.get("latencies"))]
    if not latencies:  # before 0.27 or so: the first token's time, and the gaps between tokens
        gaps = [sum(map(_number, _list(value))) for value in _list(result.get("itls"))]
        latencies = [first + later for first, later in zip(firsts, gaps, strict=False)]
    for first, latency, error in zip(firsts, latencies, errors, strict=False):
        if error:
            report.add_failure(error)
        else:
            report.add(latency, first)
    for _ in range(report.finished, num_prompts):
        report.add_failure("not in the client's result")
    return report


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
