"""Analyse damaged inputs, each in a process of its own, and say which ones end badly.

    .venv/bin/python scripts/fuzz_inputs.py --draws 2000

An end is bad if the exit code is neither 0 nor 2, an error is not one line, more than 10 s of CPU or 2 GB of memory are
used, or earlier results are lost or mixed. Prints each bad draw with its number, then a summary. Exit code 1 if any.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

from tests.support.input_damage import KINDS, good  # noqa: E402
from tests.system.test_fuzz_inputs import check  # noqa: E402

MOST_CPU_S, MOST_BYTES = 10.0, 2 << 30


def fuzz_seed(seed: int, earlier: Path) -> tuple[int, float, int]:
    """Exit code (or -signal), seconds of CPU and peak memory in bytes of one draw over a copy of earlier results."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
            with tempfile.TemporaryDirectory() as name:
                shutil.copytree(earlier, Path(name) / "results")
                (Path(name) / "draw").mkdir()
                code = check(seed, Path(name) / "draw")
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> int:
    """Draw and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    options = parser.parse_args()
    ended: Counter[int] = Counter()
    bad: list[int] = []
    cpu_s, peak_bytes = 0.0, 0
    work = tempfile.TemporaryDirectory()
    made = [sys.executable, "-m", "nvtxmoe", "analyze", str(good(Path(work.name))), "--report", "-o"]
    made.append(str(Path(work.name) / "results"))
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path[:2], os.environ.get("PYTHONPATH")]))}
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, env=os.environ | paths)
    for seed in range(options.first, options.first + options.draws):
        code, seconds, size_bytes = fuzz_seed(seed, Path(work.name) / "results")
        ended[code] += 1
        cpu_s, peak_bytes = max(cpu_s, seconds), max(peak_bytes, size_bytes)
        if code not in {0, 2} or seconds > MOST_CPU_S or size_bytes > MOST_BYTES:
            bad.append(seed)
            kind = list(KINDS)[seed % len(KINDS)]
            print(f"draw {seed} ({kind}): code {code}, {seconds:.1f} s, {size_bytes / 1e6:.0f} MB", flush=True)
        if (seed + 1) % 50 == 0:
            print(f"{seed + 1}: {dict(ended)}, most {cpu_s:.1f} s and {peak_bytes / 1e6:.0f} MB", flush=True)
    print(f"{options.draws} draws: {dict(sorted(ended.items()))}; {len(bad)} bad: {bad}; "
          f"most {cpu_s:.1f} s of CPU, {peak_bytes / 1e6:.0f} MB")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
