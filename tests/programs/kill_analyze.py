"""Kill `nvtxmoe analyze` at random moments while it replaces results, and look at what is left.

    .venv/bin/python tests/programs/kill_analyze.py --kills 200

Prints JSON: how many kills left the earlier results, how many the new ones, and those that left anything else. Exit
code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "analysis")]

from nvtxmoe import cli  # noqa: E402
from nvtxmoe_analysis.core.file_set import recover  # noqa: E402
from tests.support.constructed_runs import simple  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start(source: Path, out: Path) -> int:
    """Analyse in a process of its own, which has everything imported; return its id."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(BaseException), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            os._exit(cli.run(["analyze", str(source), "-o", str(out)]))
        os._exit(1)
    return pid


def contents(out: Path) -> dict[str, bytes]:
    """Files of results, those of a set that was not finished in their place."""
    folder = out / "moe_expert_tracking"
    recover(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def main() -> int:
    """Kill and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draws = random.Random(options.seed)
    found: dict[str, Any] = {"earlier": 0, "new": 0, "ended_before": 0, "other": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sources = [simple(top_k=2).save(work / "a.sqlite"), simple(rank=0, layers=1).save(work / "b.sqlite")]
        for source, out in zip(sources, ("earlier", "new"), strict=True):
            os.waitpid(start(source, work / out), 0)
        earlier, new = contents(work / "earlier"), contents(work / "new")
        assert earlier and new and earlier != new
        begun = time.monotonic()
        shutil.copytree(work / "earlier", work / "out")
        os.waitpid(start(sources[1], work / "out"), 0)
        whole_s = time.monotonic() - begun
        assert contents(work / "out") == new
        for number in range(options.kills):
            shutil.rmtree(work / "out")
            shutil.copytree(work / "earlier", work / "out")
            pid = start(sources[1], work / "out")
            time.sleep(draws.uniform(0.3, 1.3) * whole_s)
            os.kill(pid, SIGNALS[number % len(SIGNALS)])
            _, status = os.waitpid(pid, 0)
            left = contents(work / "out")
            found["ended_before"] += status == 0
            if left in (earlier, new):
                found["earlier" if left == earlier else "new"] += 1
            else:
                found["other"].append([number, sorted(left)])
    print(json.dumps(found))
    return 1 if found["other"] else 0


if __name__ == "__main__":
    sys.exit(main())
