"""Running the `nvtxmoe` command in a test, and what must hold whenever it refuses something."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvtxmoe import cli
from tests.support.paths import GOLDEN

#: The capture of ``golden_2gpu`` as a folder of Parquet files: small, and complete.
TWO_GPUS = GOLDEN / "h100-2gpu-ep2-graphs"
RESULTS = "moe_expert_tracking"
#: Why nothing can be made in /proc.
PROC = "No such file or directory" if os.access("/proc", os.W_OK) else "Permission denied"


@dataclass(frozen=True)
class Ran:
    """Exit code and streams of one command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be JSON as the standard has it."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


def run(*arguments: object) -> Ran:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(a) for a in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def spawn(*arguments: object, **options: Any) -> Ran:
    """Run the command in a process of its own, with pipes for output."""
    command = [sys.executable, "-m", "nvtxmoe", *(str(a) for a in arguments)]
    done = subprocess.run(command, capture_output=True, check=False, **options)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def analyze(source: Path, output: Path, *options: object) -> Ran:
    """Run `nvtxmoe analyze` on one input; it must succeed."""
    ran = run("analyze", source, "-o", output, *options)
    assert (ran.code, ran.err) == (0, ""), ran.err
    return ran


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files in a folder with their bytes, and all folders in it."""
    return {str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None for f in sorted(folder.rglob("*"))}


def everything_but_its_path(folder: Path) -> dict[str, bytes | None]:
    """As ``everything``, with ``DIR`` for the folder's own path, which commands in findings.json name."""
    found = everything(folder)
    advised = found.get("findings.json")
    return found if advised is None else {**found, "findings.json": advised.replace(str(folder).encode(), b"DIR")}


def files(folder: Path) -> set[str]:
    """Names of all files in a folder, however deep."""
    return {name for name, content in everything(folder).items() if content is not None} if folder.exists() else set()


def refused(ran: Ran, *said: object) -> str:
    """Assert that a command ended with one line and code 2, and that the line has all that is given; returns it."""
    assert (ran.code, ran.out) == (2, ""), ran
    assert ran.err.startswith("nvtxmoe: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1, ran.err
    for part in said:
        assert str(part) in ran.err, ran.err
    return ran.err


def refuses(source: Path, *said: object) -> str:
    """Assert that `analyze` refuses one input: one line that names it, and not a byte written anywhere."""
    output = source.parent / "results"
    before = everything(source.parent)
    line = refused(run("analyze", source, "-o", output), source, *said)
    assert everything(source.parent) == before
    assert ". " in line, f"says nothing of what to do: {line}"
    return line
