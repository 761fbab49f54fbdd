"""Which nsys, what it can do, and the `nsys profile` command line."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.nsys_compatibility import NVTX_FOR_ALL, nvtx_records_under, version_numbers

#: The oldest that was tried.
OLDEST = (2023, 4)
REPORT = "report"
REPORT_FILE = f"{REPORT}.nsys-rep"
#: What nsys leaves when it could record but not import.
RAW_FILE = f"{REPORT}.qdstrm"
DEFAULT_TRACE = "cuda,nvtx"


@dataclass(frozen=True)
class Nsys:
    """An nsys: where it is, its version, and whether its exports carry binary payloads."""

    path: Path
    version: str
    knows_blobs: bool


def examine(explicit: Path | None = None) -> Nsys:
    """Find nsys and ask it what it is.

    Parameters:
        explicit: the nsys to use; default: NVTXMOE_NSYS, then the PATH.

    Raises:
        NvtxmoeError: there is none, it does not run, or it is too old.
    """
    from nvtxmoe_analysis.readers.nsys_export import NSYS_ENV, find_nsys  # noqa: PLC0415  not before it is needed

    other = f"name one with --nsys or {NSYS_ENV}, or use --mode moe, which needs none"
    try:
        path = find_nsys(explicit)
    except NvtxmoeError as error:
        what = error.what if "cannot be run" in error.what else "no nsys was found"
        raise NvtxmoeError(what, remedy=f"Install Nsight Systems, {other}") from error
    version_text = _ask(path, "--version")
    try:
        version = version_text.rpartition("version ")[2].split()[0]
        numbers = version_numbers(version)
    except (IndexError, ValueError):
        shown = version_text.strip().splitlines()[-1] if version_text.strip() else "nothing"
        raise NvtxmoeError(
            f"{path} --version does not name its version, it printed: {shown}",
            remedy=f"Install Nsight Systems, {other}",
        ) from None
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise NvtxmoeError(
            f"nsys {version} is too old ({path}): {oldest} is the oldest known to record what nvtxmoe emits",
            remedy=f"Install a newer Nsight Systems, {other}",
        )
    return Nsys(path, version, "--include-blobs" in _ask(path, "export", "--help"))


def _ask(path: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=120, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else "it did not answer within 120 s"
        raise NvtxmoeError(
            f"nsys cannot be run ({path}): {reason}", remedy="Name one that runs here with --nsys"
        ) from error
    return done.stdout.decode("utf-8", "replace")


def check_nvtx(nsys: Nsys, nvtx: str | None, python: Path) -> str:
    """The version of nvtx, after a look that this nsys records what it emits.

    Raises:
        NvtxmoeError: nvtx is missing, or emits what this nsys does not record.
    """
    if nvtx is None:
        raise NvtxmoeError(
            f"the command's Python has no nvtx ({python})",
            remedy=f"Run {python} -m pip install nvtx, or name another Python with --python",
        )
    if not nvtx_records_under(nvtx, nsys.version):
        raise NvtxmoeError(
            f"nsys {nsys.version} records nothing of what nvtx {nvtx} emits ({python})",
            remedy=f"Run {python} -m pip install nvtx=={NVTX_FOR_ALL}, or use an nsys of 2025, or name another Python",
        )
    return nvtx


def profile_command(
    nsys: Path, command: Sequence[str], folder: Path, *, session: str, trace: str = DEFAULT_TRACE,
    more: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """The command line that runs ``command`` under nsys; children are followed.

    Parameters:
        folder: where the report goes, as ``report.nsys-rep``.
        session: nsys's name of the run, for `nsys stop`.
        trace: what to trace, as `nsys profile --trace` takes it.
        more: options for `nsys profile` besides.
    """
    return [
        str(nsys), "profile", "-t", trace,
        # A CUDA graph is recorded kernel by kernel, so that layers can be told.
        *(["--cuda-graph-trace=node"] if "cuda" in trace.split(",") else []),
        "-s", "none", "--cpuctxsw=none", f"--session-new={session}", *more,
        "-o", str(folder / REPORT).replace("%", "%%"),  # nsys reads %p and the like
        *command,  # nsys 2023.4 knows no --
    ]  # fmt: skip
