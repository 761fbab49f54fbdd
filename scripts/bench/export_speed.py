"""From a report to results, through SQLite and through Parquet: the tables of docs/development/benchmarks-exports.md.

``python scripts/bench/export_speed.py REPORT.nsys-rep... [--nsys NSYS] [--repeats 3]`` exports each report with nsys in
both ways and analyses what came, in turn and in fresh processes, and prints Markdown. ``--steps N...`` first records
reports of so many steps on two ranks (routing alone, without a GPU) in FOLDER. Both ways must give the same tables.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nvtxmoe_analysis.readers.nsys_export import BLOBS_OPTION  # noqa: E402
from scripts.bench.many_reports import Took, timed  # noqa: E402

WAYS = {"SQLite": ("sqlite", "export.sqlite"), "Parquet": ("parquetdir", "export_pqtdir")}
MB = 1e6


def record(nsys: str, folder: Path, steps: int) -> Path:
    """Record a report of so many steps, unless the folder holds it already."""
    report = folder / f"steps{steps}.nsys-rep"
    if not report.exists():
        program = f"from tests.programs import emit_words as e; e.STEPS = {steps}; e.emit_rank(RANK)"
        ranks = " & ".join(f"{sys.executable} -c '{program.replace('RANK', str(rank))}'" for rank in range(2))
        command = [nsys, "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "-o", str(report)]
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        subprocess.run(
            [*command, "sh", "-c", f"{ranks} & wait"],
            check=True,
            stdout=sys.stderr,
            env=os.environ | {"PYTHONPATH": paths},
            cwd=folder,
        )
    return report


def export_and_analyze(nsys: str, report: Path, way: str, folder: Path) -> tuple[Took, int, Took]:
    """What the export took, its bytes, and what its analysis took."""
    kind, name = WAYS[way]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    known = subprocess.run([nsys, "export", "--help"], capture_output=True, text=True, check=True).stdout
    blobs = [f"{BLOBS_OPTION}=true"] if BLOBS_OPTION in known else []
    exported = timed([nsys, "export", "--type", kind, *blobs, "-o", str(folder / name), str(report)])
    size_bytes = sum(file.stat().st_size for file in [folder / name, *folder.rglob("*")] if file.is_file())
    analyzed = timed([sys.executable, "-m", "nvtxmoe", "analyze", str(folder / name), "-o", str(folder / "results")])
    return exported, size_bytes, analyzed


def same_tables(first: Path, second: Path) -> None:
    """End the run where two analyses wrote different tables."""
    names = sorted(file.name for file in first.glob("*.csv"))
    _, different, unreadable = filecmp.cmpfiles(first, second, names, shallow=False)
    if different or unreadable or not names:
        raise SystemExit(f"different tables: {different + unreadable}")


def row(report: Path, way: str, runs: list[tuple[Took, int, Took]]) -> str:
    """One line of the table."""
    export_s, analyze_s = [run[0].wall_s for run in runs], [run[2].wall_s for run in runs]
    whole_s = [export + analysis for export, analysis in zip(export_s, analyze_s, strict=True)]
    return (
        f"| {report.stat().st_size / MB:.0f} | {way} | {statistics.median(export_s):.1f} | "
        f"{max(run[0].peak_mib for run in runs):,.0f} | {runs[0][1] / MB:,.0f} | {statistics.median(analyze_s):.1f} | "
        f"{max(run[2].peak_mib for run in runs):,.0f} | {statistics.median(whole_s):.1f} | "
        f"{min(whole_s):.1f} to {max(whole_s):.1f} | {statistics.median(whole_s) / statistics.median(export_s):.2f} |"
    )


def main() -> None:
    """Record, run in turn, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="*")
    parser.add_argument("--steps", type=int, nargs="*", default=[])
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench-exports")
    parser.add_argument("--nsys", default="nsys")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    nsys = shutil.which(args.nsys)
    if nsys is None:
        parser.error(f"there is no {args.nsys}: name one with --nsys")
    nsys = str(Path(nsys).absolute())
    args.folder.mkdir(parents=True, exist_ok=True)
    reports = [*args.reports, *(record(nsys, args.folder.absolute(), steps) for steps in args.steps)]
    if not reports:
        parser.error("name reports, or numbers of steps with --steps")
    runs: dict[tuple[Path, str], list[tuple[Took, int, Took]]] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        for report in reports:
            for _ in range(args.repeats):
                for way in WAYS:
                    took = export_and_analyze(nsys, report, way, Path(scratch) / way)
                    runs.setdefault((report, way), []).append(took)
                same_tables(*(Path(scratch) / way / "results" / "moe_expert_tracking" for way in WAYS))
    print("| report MB | way | export s | export MiB | exported MB | analyze s | analyze MiB | together s | range s "
          "| x export |")  # fmt: skip
    print("| --- " * 10 + "|")
    for (report, way), of_way in runs.items():
        print(row(report, way, of_way))
    version = subprocess.run([nsys, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"\n{version}; {args.repeats} repetitions in turn, {len(os.sched_getaffinity(0))} cores, "
          f"load average {os.getloadavg()[0]:.1f} at the end.")  # fmt: skip


if __name__ == "__main__":
    main()
