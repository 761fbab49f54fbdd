"""Measures time and memory of `analyze` over many reports: docs/development/benchmarks-many-captures.md.

``python scripts/bench/many_reports.py [--folder DIR] [--reports 16] [--kernels 1000000] [--repeats 3]`` tiles a golden
capture into a report a data-parallel rank (kept in DIR for the next time). In turn it analyses each of them alone, all
of them one after the other (``--jobs 1``), all of them in processes, and all of them on a Dask cluster of two worker
processes that it starts (``--workers N``; 0 leaves that out). The files of these ways must be the same, byte by byte,
and the rows the tiler's truth. Memory is the resident memory of the process and its children, summed, every 50 ms;
pages that they share count for each. Prints Markdown.

``--jobs 1 2 4 8 16`` measures these numbers of processes instead, on a machine of many cores. ``--given REPORT...``
analyzes reports of a real run, of which no truth is known.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.tile_capture import tile_capture  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "h100-1gpu-graphs.sqlite.xz"
LOOK_S = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Took:
    """One run of a command: seconds of the wall, of CPU, and the most memory of it and its children in MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def prepare(folder: Path, reports: int, kernels: int) -> list[Path]:
    """Tile the capture into a report a rank, unless the folder holds them already."""
    settings = json.dumps([reports, kernels])
    stamp = folder / "stamp.json"
    if not stamp.exists() or stamp.read_text() != settings:
        folder.mkdir(parents=True, exist_ok=True)
        small = folder / "small.sqlite"
        with lzma.open(GOLDEN) as packed, small.open("wb") as file:
            shutil.copyfileobj(packed, file)
        for rank in range(reports):
            of_rank = folder / f"rank{rank}"
            tile_capture(small, of_rank, kernels, 1.4, 1, rank, {"sqlite"}, 12, first_rank=rank, world_size=reports)
        stamp.write_text(settings)
    return [folder / f"rank{rank}" / "tiled.sqlite" for rank in range(reports)]


def memory_bytes(root: psutil.Process) -> int:
    """Resident memory of a process and all its children, summed."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def timed(command: list[str]) -> Took:
    """Run a command and watch its memory."""
    peak = 0
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    root, over = psutil.Process(process.pid), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(LOOK_S):
            peak = max(peak, memory_bytes(root))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    over.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {status}")
    return Took(wall, usage.ru_utime + usage.ru_stime, peak / MIB)


def analyze(reports: list[Path], output: Path, *options: str) -> Took:
    """Time one analysis."""
    shutil.rmtree(output, ignore_errors=True)
    return timed([sys.executable, "-m", "nvtxmoe", "analyze", *map(str, reports), "-o", str(output), *options])


def check(output: Path, reports: list[Path]) -> str:
    """Rows that equal the truth; ends the run where they do not."""
    tables = output / "moe_expert_tracking"
    cells = pl.read_csv(tables / "moe_layer_timings.csv")
    truth = pl.concat([pl.read_parquet(report.parent / "truth_cells.parquet") for report in reports])
    columns = [name for name in truth.columns if name in cells.columns]
    equal = truth.select(columns).join(cells.select(columns).cast(truth.select(columns).schema), on=columns)
    counts = pl.read_csv(tables / "moe_expert_activations.csv").drop("percentage")
    key = ["layer_idx", "expert_id"]
    true_activations = pl.concat([pl.read_parquet(report.parent / "truth_activations.parquet") for report in reports])
    true_activations = true_activations.group_by(key).agg(pl.col("activation_count").sum())
    same = true_activations.join(counts.cast(true_activations.schema), on=[*key, "activation_count"])
    if len(equal) != len(truth) or len(cells) != len(truth) or len(same) != len(true_activations):
        raise SystemExit(
            f"the results are not the truth: {len(equal)} of {len(truth)}, {len(same)} of {len(true_activations)}"
        )
    return f"cells {len(equal):,} of {len(truth):,}, activations {len(same):,} of {len(true_activations):,}"


def same_files(output: Path, others: list[Path]) -> None:
    """End the run where another way gave other files."""
    for other in others:
        different = subprocess.run(
            ["diff", "-rq", str(output), str(other)], capture_output=True, text=True, check=False
        )
        if different.stdout or different.returncode:
            raise SystemExit(f"other files: {different.stdout}")


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """The address of a scheduler with so many workers of one thread."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scheduler_file = folder / "scheduler.json"

        def start(module: str, *options: str) -> None:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *options, "--no-dashboard"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        start("dask_scheduler", "--port", "0", "--scheduler-file", str(scheduler_file))
        while not scheduler_file.exists():
            time.sleep(0.1)
        for _ in range(workers):
            start(
                "dask_worker",
                "--scheduler-file",
                str(scheduler_file),
                "--nthreads",
                "1",
                "--local-directory",
                str(folder),
            )
        time.sleep(5)  # until they have registered
        yield str(json.loads(scheduler_file.read_text())["address"])


def row(name: str, runs: list[Took], parts: list[float]) -> str:
    """One line of the table; ``parts``: of each repetition, half of what each report alone took."""
    wall = [run.wall_s for run in runs]
    ratio = statistics.median(whole / half for whole, half in zip(wall, parts, strict=True))
    return (
        f"| {name} | {statistics.median(wall):.1f} | {min(wall):.1f} to {max(wall):.1f} | "
        f"{statistics.median(run.cpu_s for run in runs):.1f} | {max(run.peak_mib for run in runs):,.0f} | {ratio:.2f} |"
    )


def document(runs: dict[str, list[Took]], reports: list[Path], equal: str) -> dict[str, Any]:
    """Return the figures: of each way the seconds of each repetition."""
    return {
        "reports": len(reports),
        "sqlite_bytes": sum(report.stat().st_size for report in reports),
        "cores": len(os.sched_getaffinity(0)),
        "equal": equal,
        "ways": [
            {
                "name": way,
                "median_wall_s": statistics.median(run.wall_s for run in of_way),
                "runs": list(map(asdict, of_way)),
            }
            for way, of_way in runs.items()
        ],
    }


def main() -> None:
    """Prepare, run in turn, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "nvtxmoe-many-reports")
    parser.add_argument("--reports", type=int, default=16)
    parser.add_argument("--kernels", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="Workers of the Dask cluster; 0: no cluster.")
    parser.add_argument("--jobs", type=int, nargs="+", metavar="N", help="Numbers of processes to measure.")
    parser.add_argument("--given", type=Path, nargs="+", metavar="REPORT", help="Reports of a real run.")
    parser.add_argument("--out", type=Path, help="Also write the figures to this JSON file.")
    args = parser.parse_args()
    reports = args.given or prepare(args.folder, args.reports, args.kernels)
    args.folder.mkdir(parents=True, exist_ok=True)
    ways: dict[str, list[str]] = {"one after the other (--jobs 1)": ["--jobs", "1"], "processes (no option)": []}
    if args.jobs:
        ways = {f"--jobs {jobs}": ["--jobs", str(jobs)] for jobs in args.jobs}
    with contextlib.ExitStack() as stack:
        if args.workers:
            name = f"Dask, {'two' if args.workers == 2 else args.workers} workers (its own process)"
            ways[name] = ["--dask", stack.enter_context(cluster(args.workers))]
        took: dict[str, list[Took]] = {way: [] for way in ways}
        alone: list[list[Took]] = []
        outputs = {way: args.folder / f"out{i}" for i, way in enumerate(ways)}
        for _ in range(args.repeats):
            alone.append([analyze([report], args.folder / "alone") for report in reports])
            for way, options in ways.items():
                took[way].append(analyze(reports, outputs[way], *options))
    first, *others = outputs.values()
    same_files(first, others)
    equal = "All ways gave the same files." if args.given else f"Equal to the truth: {check(first, reports)}."
    parts = [sum(run.wall_s for run in once) / 2 for once in alone]
    summed = [Took(sum(r.wall_s for r in o), sum(r.cpu_s for r in o), max(r.peak_mib for r in o)) for o in alone]
    size = sum(report.stat().st_size for report in reports) / MIB
    kernels = "" if args.given else f" of {args.kernels:,} kernels"
    print(f"{len(reports)} reports{kernels}, {size:,.0f} MiB of SQLite. {equal}")
    print("\n| run | median s | range s | CPU s | peak MiB | x half the sum of the parts |")
    print("| --- | --- | --- | --- | --- | --- |")
    all_runs = {"each alone, summed": summed, **took}
    for way, runs in all_runs.items():
        print(row(way, runs, parts))
    if args.out:
        args.out.write_text(json.dumps(document(all_runs, reports, equal), indent=1) + "\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("polars", "numpy", "distributed"))
    print(
        f"\nPython {platform.python_version()}, {versions}; {len(os.sched_getaffinity(0))} cores; {args.repeats} "
        f"repetitions in turn, load average {os.getloadavg()[0]:.1f} at the end."
    )


if __name__ == "__main__":
    main()
