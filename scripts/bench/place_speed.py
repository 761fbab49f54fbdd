"""How fast `nvtxmoe place` is, and in how much memory: the table of docs/reference/placement-files.md.

``python scripts/bench/place_speed.py [--steps 1000] [--layers 48] [--experts 128] [--ranks 8] [--repeats 3]`` writes
results of a constructed run as `nvtxmoe analyze` does (CSV, all columns filled), predicts from them in fresh processes,
compares the fitted cost of an active expert with the planted one, and prints Markdown. Wall time and peak memory are
those of the whole process, Python's start included.
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

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

from nvtxmoe_analysis.outputs.registry import tables  # noqa: E402
from nvtxmoe_analysis.placement.layout import contiguous  # noqa: E402
from scripts.bench.analyze_speed import processor, timed  # noqa: E402

TOKENS, TOP_K, BLOCK_M = 64, 8, 16
ACTIVE_NS, BASE_NS, NOISE_NS = 1500.0, 30_000.0, 800.0
#: Different rows of counts per layer.
POOL = 256


def write_results(folder: Path, steps: int, layers: int, experts: int, ranks: int) -> None:
    """Decode steps of skewed experts; each layer has its own order of them."""
    random = np.random.default_rng(steps)
    inner = folder / "moe_expert_tracking"
    inner.mkdir(parents=True)
    types = tables()["layer_correlation"].types
    numbers = np.arange(steps)
    counted, timed_rows = [], []
    for layer in range(layers):
        logits = random.permutation(np.linspace(0, 3, experts))
        drawn = logits + random.gumbel(size=(POOL, TOKENS, experts))
        ids = np.argpartition(-drawn, TOP_K, axis=2)[:, :, :TOP_K].reshape(POOL, -1)
        pool = np.stack([np.bincount(step_ids, minlength=experts) for step_ids in ids]).astype(np.uint32)
        counts = pool[random.integers(POOL, size=steps)]
        load = contiguous(experts, ranks).load(counts, np.full(steps, BLOCK_M), numbers)
        own_ns = BASE_NS + ACTIVE_NS * load.active + NOISE_NS * random.standard_normal((steps, ranks))
        width = pl.Array(pl.UInt32, experts)
        counted.append(
            pl.DataFrame({"rank": 0, "step": numbers, "layer_idx": layer, "num_tokens": TOKENS}).with_columns(
                counts=pl.Series(counts, dtype=width).cast(pl.List(pl.UInt32))
            )
        )
        for rank in range(ranks):
            known = {
                "rank": rank,
                "step": numbers,
                "layer_idx": layer,
                "num_tokens": TOKENS,
                "prefill_tokens": 0,
                "decode_tokens": TOKENS,
                "block_m": BLOCK_M,
                "launched_by": "graph",
                "step_kind": "decode",
                "block_m_source": "default",
                "local_experts": experts // ranks,
                "local_activations": load.rows[:, rank],
                "local_active_experts": load.active[:, rank],
                "local_expert_tiles": load.tiles[:, rank],
                "weight_bytes": load.active[:, rank] * 4_718_592,
                "own_ns": np.rint(own_ns[:, rank]).astype(np.int64),
                "step_gpu_ns": 12_000_000,
            }
            filler = {name: 12345 if kind == pl.Int64 else 1.2345678 for name, kind in types.items()}
            timed_rows.append(pl.DataFrame({**filler, **known}).select(types.keys()))
    rows = pl.concat(timed_rows, how="vertical_relaxed").sort("rank", "step", "layer_idx")
    rows.write_csv(inner / "moe_layer_correlation.csv")
    pl.concat(counted).write_parquet(inner / "moe_step_activations.parquet")
    (inner / "moe_capture_validation.json").write_text(json.dumps({"selection": {}, "inputs": []}))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 1000), ("layers", 48), ("experts", 128), ("ranks", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_results(folder / "results", options.steps, options.layers, options.experts, options.ranks)
        runs = [
            timed([sys.executable, "-m", "nvtxmoe", "place", str(folder / "results"), "-o", str(folder / "out")])
            for _ in range(options.repeats)
        ]
        document = json.loads((folder / "out" / "moe_placement" / "placement.json").read_text())
    slope = document["phases"]["decode"]["mean_slopes_ns"][-1]
    if abs(slope - ACTIVE_NS) > 0.03 * ACTIVE_NS:
        print(f"fitted {slope} ns per active expert, planted {ACTIVE_NS}", file=sys.stderr)
        return 1
    seconds = statistics.median(run[0] for run in runs)
    cpu = statistics.median(run[1] for run in runs)
    peak = max(run[2] for run in runs)
    print("| layers x experts x steps, ranks | wall s | CPU s | peak MiB | us per active expert: fitted, planted |")
    print("| --- | --- | --- | --- | --- |")
    shape = f"{options.layers} x {options.experts} x {options.steps:,}, {options.ranks}"
    print(f"| {shape} | {seconds:.1f} | {cpu:.1f} | {peak:,.0f} | {slope / 1000:.3f}, {ACTIVE_NS / 1000:.3f} |")
    print(
        f"\nmedian of {options.repeats} runs; {processor()}, {len(os.sched_getaffinity(0))} cores; Python "
        f"{platform.python_version()}, numpy {np.__version__}, polars {pl.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
