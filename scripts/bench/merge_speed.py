"""Measures speed, memory and correctness of `nvtxmoe merge`: the table of docs/development/benchmarks-analysis.md.

``python scripts/bench/merge_speed.py [--steps 2000] [--layers 48] [--experts 128] [--ranks 1] [--repeats 3]`` writes a
session of direct mode (kept in --folder for the next time), merges it in fresh processes, compares the totals of every
expert with the writer's, and prints Markdown. Wall time and peak memory are those of the whole process, Python's start
included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nvtxmoe.formats import schema  # noqa: E402
from nvtxmoe.formats.journal import RANKS, SUFFIX, JournalWriter, record, records_of  # noqa: E402
from scripts.bench.analyze_speed import processor, timed  # noqa: E402

TOKENS, TOP_K = 64, 8
#: Every so many steps the tokens' experts and weights are written too.
SAMPLE_EVERY = 100
#: Steps in one block, as one flush a second makes them.
BLOCK_STEPS = 50
#: Different rows of counts; each cell has one of them.
POOL = 4096


def write_session(folder: Path, steps: int, layers: int, experts: int, ranks: int) -> None:
    """Data-parallel ranks that decode; beside the journals, the totals of each (layer, expert)."""
    random = np.random.default_rng(steps)
    chosen = np.argsort(random.random((POOL, TOKENS, experts)), axis=2)[:, :, :TOP_K].astype(np.uint16)
    pool = np.stack([np.bincount(ids.ravel(), minlength=experts) for ids in chosen]).astype(np.uint32)
    totals = np.zeros((layers, experts), np.int64)
    for rank in range(ranks):
        writer = JournalWriter(folder / RANKS / f"rank{rank}-{1000 + rank}{SUFFIX}")
        writer.append(record("meta", 1, json.dumps(_meta(rank, ranks, layers, experts)).encode()))
        for first in range(0, steps, BLOCK_STEPS):
            numbers = range(first, min(steps, first + BLOCK_STEPS))
            picks = random.integers(POOL, size=(len(numbers), layers))
            for layer in range(layers):
                totals[layer] += np.bincount(picks[:, layer], minlength=POOL) @ pool.astype(np.int64)
            writer.append(
                b"".join(_step(rank, n, pool, chosen, picked) for n, picked in zip(numbers, picks, strict=True))
            )
        writer.append(record("end", 1, json.dumps({"steps": steps, "lost": {}, "failures": {}}).encode()))
        writer.close()
    np.save(folder / "totals.npy", totals)


def _meta(rank: int, ranks: int, layers: int, experts: int) -> dict[str, Any]:
    each = {"num_experts": experts, "top_k": TOP_K, "local_experts": list(range(experts))}
    return {
        **{"schema": schema.SCHEMA, "nvtxmoe": "bench", "vllm": "none", "torch": "none", "device": "none"},
        **{"rank": rank, "world_size": ranks, "dp_rank": rank, "dp_size": ranks, "sample_every": SAMPLE_EVERY},
        **{"tp_rank": 0, "tp_size": 1, "ep_rank": 0, "ep_size": 1},
        "layers": [{"layer": n, "name": f"layers.{n}", **each} for n in range(layers)],
    }


def _step(
    rank: int, number: int, pool: npt.NDArray[Any], chosen: npt.NDArray[np.uint16], picked: npt.NDArray[Any]
) -> bytes:
    at = 1_700_000_000_000_000_000 + number * 20_000_000
    step = np.array((number, rank, TOKENS, TOKENS, 0, TOKENS, 0), schema.STEP_DTYPE)
    cells = np.zeros(len(picked), schema.counts_dtype(pool.shape[1]))
    cells["step"], cells["rank"], cells["num_tokens"], cells["top_k"] = number, rank, TOKENS, TOP_K
    cells["layer"], cells["counts"] = np.arange(len(picked)), pool[picked]
    parts: list[bytes | memoryview] = [record("step", at, step.tobytes()), records_of("counts", at, cells)]
    if number % SAMPLE_EVERY == 0:
        for layer, pick in enumerate(picked):
            rows = np.zeros(TOKENS, schema.topk_dtype(TOP_K))
            rows["step"], rows["layer"], rows["token"] = number, layer, np.arange(TOKENS)
            rows["experts"], rows["weights"] = chosen[pick], 1 / TOP_K
            parts.append(record("topk", at, rows.tobytes()))
    return b"".join(parts)


def check(results: Path, session: Path) -> str:
    """Refuse results that are not the writer's totals."""
    activations = pl.read_csv(results / "moe_expert_tracking" / "moe_expert_activations.csv")
    totals = np.load(session / "totals.npy")
    if not np.array_equal(activations["activation_count"].to_numpy(), totals.ravel()):
        raise SystemExit("the results are not the truth")
    cells = pl.scan_csv(results / "moe_expert_tracking" / "moe_load_imbalance.csv").select(pl.len()).collect().item()
    return f"totals equal of {totals.size:,} (layer, expert); {cells:,} (rank, step, layer)"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench-merge")
    for name, default in (("steps", 2000), ("layers", 48), ("experts", 128), ("ranks", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    session = args.folder / f"session_{args.steps}_{args.layers}_{args.experts}_{args.ranks}"
    if not (session / "totals.npy").exists():
        write_session(session, args.steps, args.layers, args.experts, args.ranks)
    size_bytes = sum(file.stat().st_size for file in (session / RANKS).iterdir())
    runs, equal_rows = [], ""
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for _ in range(args.repeats):
            runs.append(timed([sys.executable, "-m", "nvtxmoe", "merge", str(session), "-o", scratch]))
            equal_rows = check(Path(scratch), session)
    wall = [run[0] for run in runs]
    print(f"{equal_rows}.\n")
    print("| steps | layers | experts | ranks | journals MB | median s | range s | CPU s | peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {args.steps:,} | {args.layers} | {args.experts} | {args.ranks} | {size_bytes / 1e6:,.1f} | "
        f"{statistics.median(wall):.2f} | {min(wall):.2f} to {max(wall):.2f} | "
        f"{statistics.median(run[1] for run in runs):.2f} | {max(run[2] for run in runs):,.0f} |\n"
    )
    print(f"Python {platform.python_version()}, polars {pl.__version__}, numpy {np.__version__}; ", end="")
    print(f"{os.cpu_count()} cores, {processor()}; load average {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
