"""How fast `nvtxmoe analyze` is, and whether it is right: the table of docs/development/benchmarks-analysis.md.

``python scripts/bench/analyze_speed.py [--folder DIR] [--kernels 5000000] [--repeats 5]`` tiles a golden capture
into a big export (kept in DIR for the next time), runs `analyze` on it from SQLite and from Parquet in fresh
processes, in turn with the yardstick bare_pipeline.py, compares every row with the tiler's truth, and prints
Markdown. Wall time and peak memory are those of the whole process, Python's start included.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.bench.tile_capture import tile_capture  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "h100-1gpu-graphs.sqlite.xz"
KEY = ["rank", "step", "layer_idx"]


def prepare(folder: Path, kernels: int, topk_every: int) -> dict[str, object]:
    """Unpack and tile the capture unless the folder holds that already; the truth's summary."""
    settings = json.dumps([kernels, topk_every])
    stamp = folder / "stamp.json"
    if not stamp.exists() or stamp.read_text() != settings:
        folder.mkdir(parents=True, exist_ok=True)
        small = folder / "small.sqlite"
        with lzma.open(GOLDEN) as packed, small.open("wb") as file:
            shutil.copyfileobj(packed, file)
        tile_capture(small, folder, kernels, 1.4, 8, 0, {"sqlite", "parquet"}, topk_every)
        stamp.write_text(settings)
    summary: dict[str, object] = json.loads((folder / "truth.json").read_text())
    return summary


def timed(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a command."""
    began = time.perf_counter()
    # Compiled modules are kept, as an installation has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    if status:
        raise SystemExit(f"{' '.join(command)} failed: {status}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def check(results: Path, folder: Path) -> dict[str, str]:
    """Rows of the results that equal the truth, by table."""
    tables = results / "moe_expert_tracking"
    cells = pl.read_csv(tables / "moe_layer_timings.csv")
    truth = pl.read_parquet(folder / "truth_cells.parquet")
    columns = [c for c in truth.columns if c in cells.columns]
    equal = truth.select(columns).join(cells.select(columns).cast(truth.select(columns).schema), on=columns)
    equal_rows = {"cells": f"{len(equal):,} of {len(truth):,}"}
    counts = pl.read_csv(tables / "moe_expert_activations.csv").drop("percentage")
    true_activations = pl.read_parquet(folder / "truth_activations.parquet")
    same = true_activations.join(counts.cast(true_activations.schema), on=true_activations.columns)
    equal_rows["activations"] = f"{len(same):,} of {len(true_activations):,}"
    if len(equal) != len(truth) or len(cells) != len(truth) or len(same) != len(true_activations):
        raise SystemExit(f"the results are not the truth: {equal_rows}")
    return equal_rows


def table_row(name: str, runs: list[tuple[float, float, float]], bare: list[tuple[float, float, float]]) -> str:
    """One line of the table; ratios to the yardstick's runs, if there are any."""
    wall, cpu = ([run[at] for run in runs] for at in (0, 1))
    ratios = [""] * 2
    if bare:
        ratios = [
            f"{statistics.median(r[at] for r in runs) / statistics.median(r[at] for r in bare):.2f}" for at in (0, 1)
        ]
    return (
        f"| {name} | {statistics.median(wall):.2f} | {min(wall):.2f} to {max(wall):.2f} | "
        f"{statistics.median(cpu):.2f} | {min(cpu):.2f} to {max(cpu):.2f} | {max(run[2] for run in runs):,.0f} | "
        f"{ratios[0]} | {ratios[1]} |"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench")
    parser.add_argument("--kernels", type=int, default=5_000_000)
    parser.add_argument("--topk-every", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    truth = prepare(args.folder, args.kernels, args.topk_every)
    analyze = [sys.executable, "-m", "nvtxmoe", "analyze"]
    bare = [sys.executable, str(Path(__file__).with_name("bare_pipeline.py"))]
    inputs = {"SQLite": args.folder / "tiled.sqlite", "Parquet": args.folder / "tiled_pqtdir"}
    runs: dict[str, list[tuple[float, float, float]]] = {}
    equal_rows: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(args.repeats):
            for kind, path in inputs.items():
                runs.setdefault(f"bare, {kind}", []).append(timed([*bare, str(path)]))
                results = Path(scratch) / kind
                runs.setdefault(f"analyze, {kind}", []).append(timed([*analyze, str(path), "-o", str(results)]))
                equal_rows = check(results, args.folder)
            small = str(args.folder / "small.sqlite")
            small_run = timed([*analyze, small, "-o", f"{scratch}/small"])
            runs.setdefault("analyze, the capture itself (SQLite)", []).append(small_run)
            inspect = [sys.executable, "-m", "nvtxmoe", "inspect", small]
            runs.setdefault("inspect, the capture itself (SQLite)", []).append(timed(inspect))
    print(f"{truth['kernels']:,} kernels, {truth['memcpys']:,} copies, {truth['runtime_calls']:,} runtime calls ")
    print(f"({truth['calls_per_kernel']:.2f} a kernel), {truth['ranges']:,} ranges and {truth['marks']:,} marks ")
    print(f"({truth['ranges_and_marks_per_kernel']:.3f} a kernel), {truth['processes']} processes, ")
    print(f"{truth['topk_tokens']:,} sampled tokens.")
    print(f"Rows equal to the truth: {', '.join(f'{k} {v}' for k, v in equal_rows.items())}.\n")
    print("| run | median s | range s | CPU s | range CPU s | peak MiB | x bare | x bare (CPU) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, measured in runs.items():
        twin = runs.get(name.replace("analyze", "bare"), []) if name.startswith("analyze") else []
        print(table_row(name, measured, twin))
    packages = ", ".join(f"{p} {version(p)}" for p in ("nvtxmoe", "polars", "pyarrow", "connectorx", "numpy"))
    print(f"\nPython {platform.python_version()}, {packages}; {os.cpu_count()} cores, {processor()}; ", end="")
    print(f"{args.repeats} repetitions in turn, load average {os.getloadavg()[0]:.1f} at the end.")


def processor() -> str:
    """Name of the CPU, from /proc."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
