#!/usr/bin/env python3
"""Cost of live metrics: per step on the serving thread, per step on the metrics thread, and per scrape.

    .venv-vllm/bin/python scripts/bench/metrics_cost.py [--layers 61] [--experts 256] [--ranks 8] [--steps 400]

Ranks are expert-parallel and see the same tokens, as with tensor parallelism; all live in this process. Prints JSON.
Times are CPU times of the thread, so that other programs on the machine count little: medians and the
lowest ones. A scrape needs prometheus_client; without it only the reading of the snapshots is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from nvtxmoe.capture.live.collector import Collector  # noqa: E402
from nvtxmoe.capture.live.samples import Options  # noqa: E402
from nvtxmoe.capture.live.series import SERIES, Shape, most_series  # noqa: E402
from nvtxmoe.capture.live.snapshot import SUFFIX  # noqa: E402
from nvtxmoe.capture.run_identity import Identity, LayerInfo, Step, meta_text  # noqa: E402
from nvtxmoe.capture.sinks.metrics import MetricsSink  # noqa: E402
from nvtxmoe.formats import schema  # noqa: E402

TOP_K = 8
STEPS_A_PUBLISH = 40
SCRAPES = 50


def sinks_of(folder: Path, layers: int, experts: int, ranks: int, options: Options) -> list[MetricsSink]:
    """One sink per rank, without a thread."""
    blocks = [tuple(block.tolist()) for block in np.array_split(np.arange(experts), ranks)]
    sinks = []
    for rank, local in enumerate(blocks):
        sink = MetricsSink(folder, rank, options, runs=False)
        sink.path = folder / f"rank{rank}-bench{SUFFIX}"
        infos = tuple(LayerInfo(layer, f"layers.{layer}", experts, TOP_K, local) for layer in range(layers))
        identity = Identity(rank, ranks, rank, ranks, rank, ranks, layers=infos, extra={"vllm": "0", "model": "bench"})
        emit = frozenset({"counts"})
        sink.meta(meta_text(identity, sample_every=0, emit=emit, encoding=sink.encoding, held_bytes=0, capture=None))
        sinks.append(sink)
    return sinks


def timed_us(call: Callable[[], object]) -> float:
    """CPU time of this thread in microseconds."""
    began = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - began) / 1000


def summary(times_us: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median and lowest."""
    return {"median": round(statistics.median(times_us) * scale, 3), "lowest": round(min(times_us) * scale, 3)}


def measure(layers: int, experts: int, ranks: int, steps: int, options: Options, folder: Path) -> dict[str, Any]:
    """All costs of one shape."""
    sinks = sinks_of(folder, layers, experts, ranks, options)
    chance = np.random.default_rng(0)
    many = chance.poisson(2.0, (16, layers, experts))
    rows = np.zeros(layers, schema.counts_dtype(experts))
    rows["layer"], rows["top_k"] = np.arange(layers), TOP_K
    begin, copy, work = [], [], []
    for number in range(steps):
        rows["step"], rows["counts"] = number, many[number % len(many)]
        step = Step(number, 0, 64, 64, 0, 64)
        for sink in sinks:
            begin.append(timed_us(lambda sink=sink, step=step: sink.step_begins(step)))  # type: ignore[misc]
            copy.append(timed_us(lambda sink=sink: sink.payloads(schema.COUNTS, rows)))  # type: ignore[misc]
            sink.step_ends()
        if (number + 1) % STEPS_A_PUBLISH == 0:
            work.append(timed_us(lambda: sinks[0].work(publish=True)) / STEPS_A_PUBLISH)
            for sink in sinks[1:]:
                sink.work(publish=True)
    collector = Collector(folder, options)
    view = collector.view()
    costs = {
        "layers": layers, "experts": experts, "ranks": ranks, "steps": steps,
        "python": platform.python_version(),
        "series": sum(1 for series in SERIES for _ in series.of(view, options)),
        "most_series": most_series(Shape(layers, experts, ranks, ranks, options)),
        "step_begins_us": summary(begin),
        "copy_us": summary(copy),
        "metrics_thread_us_per_step": summary(work),
        "read_snapshots_ms": summary([timed_us(collector.view) for _ in range(SCRAPES)], 1e-3),
        "scrape_ms": None,
    }  # fmt: skip
    try:
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  an extra
    except ImportError:
        return costs
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    costs["scrape_ms"] = summary([timed_us(lambda: generate_latest(registry)) for _ in range(SCRAPES)], 1e-3)
    costs["scrape_bytes"] = len(generate_latest(registry))
    return costs


def main() -> None:
    """Measure one shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 61), ("experts", 256), ("ranks", 8), ("steps", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--top-k", type=int, default=Options().top_k, help="hottest and coldest experts per layer")
    parser.add_argument("--detail", action="store_true", help="one series per expert (NVTXMOE_METRICS_EXPERTS)")
    options_given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        options = Options(options_given.top_k, options_given.detail)
        measured = measure(
            options_given.layers, options_given.experts, options_given.ranks, options_given.steps, options, Path(folder)
        )
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
