#!/usr/bin/env python3
"""What explaining costs: correlation and models within `analyze` of a big export, and the report of the demo's capture.

``python scripts/bench/explain_speed.py EXPORT [--repeats 3]``: EXPORT is one that scripts/bench/analyze_speed.py made
(``--folder DIR``: DIR/*.sqlite). Each run is a fresh process; times are those within it, so that reading the export
does not count. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

REPORT = "report of the two-GPU capture, analysis left out"


def measure(export: Path) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of each part, in this process."""
    from nvtxmoe_analysis.analyze import analyze  # noqa: PLC0415
    from nvtxmoe_analysis.facts.capture_facts import read_capture  # noqa: PLC0415
    from nvtxmoe_analysis.facts.selection import Selection  # noqa: PLC0415
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics  # noqa: PLC0415
    from nvtxmoe_analysis.readers.open import open_export  # noqa: PLC0415
    from nvtxmoe_analysis.report import report  # noqa: PLC0415
    from nvtxmoe_analysis.run.run_facts import merge  # noqa: PLC0415

    seconds_of: dict[str, tuple[float, float]] = {}

    def timed(name: str, began: tuple[float, float]) -> None:
        seconds_of[name] = (time.perf_counter() - began[0], time.process_time() - began[1])

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    began = now()
    results = RunMetrics.of(merge([read_capture(open_export(export), Selection())], Selection(), {}))
    _ = results.layers
    timed("reading and attributing, for comparison", began)
    began = now()
    rows = len(results.correlation)
    timed(f"correlation, {rows:,} rows", began)
    began = now()
    fits = len(results.models)
    timed(f"models, {fits} samples", began)
    with tempfile.TemporaryDirectory() as folder:
        done = analyze([ROOT / "nvtxmoe" / "data" / "demo"], Path(folder))
        began = now()
        report(done.folder)
        timed(REPORT, began)
    return seconds_of


def main() -> None:
    """Measure in fresh processes and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.export)))
        return
    command = [sys.executable, __file__, str(options.export), "--once"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.repeats)
    ]
    print("| part | median s | range s | CPU s |\n| --- | --- | --- | --- |")
    for name in runs[0]:
        wall = [run[name][0] for run in runs]
        cpu = statistics.median(run[name][1] for run in runs)
        print(f"| {name} | {statistics.median(wall):.2f} | {min(wall):.2f} to {max(wall):.2f} | {cpu:.2f} |")
    print(f"\n{os.cpu_count()} cores, {options.repeats} runs, load average {os.getloadavg()[0]:.1f} at the end.")


if __name__ == "__main__":
    main()
