"""Nsight Systems: there, and recording what this nvtx emits, which is tried out with a short program of ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Installed
from nvtxmoe.doctor.settings import error_text
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.nsys_compatibility import (
    BINARY,
    NVTX_FOR_ALL,
    NVTX_WITH_BINARY,
    carries_binary,
    nvtx_records_under,
    payload_encoding,
)
from nvtxmoe.profile.nsys_command import Nsys, examine

TRY_TIMEOUT_S = 120.0
MARKS = 20
_PROGRAM = f"""
import nvtx
for number in range({MARKS}):
    nvtx.mark("nvtxmoe.doctor.int", domain="nvtxmoe", payload=number)
try:
    import numpy
    domain, words = nvtx.get_domain("nvtxmoe"), numpy.arange(8, dtype="u4")
    domain.mark(domain.get_event_attributes(message="nvtxmoe.doctor.array", payload=words))
except Exception:
    pass
"""


@dataclass(frozen=True)
class Tried:
    """What came out of an export: marks with an int, and whether an array came along."""

    ints: int
    array: bool


@dataclass(frozen=True)
class UnderNsys:
    """What a capture under nsys would be.

    Attributes:
        version: of nsys; None where there is none that runs.
        encoding: of payloads; None where nothing would be recorded.
    """

    findings: list[Finding]
    version: str | None = None
    encoding: str | None = None


def profiler(
    installation: Installed, explicit: Path | None, requested: str, needed: bool, environ: Mapping[str, str]
) -> UnderNsys:
    """Findings on nsys, and what payloads would be.

    Parameters:
        explicit: the nsys to look at; default: as ``nvtxmoe profile`` looks for it.
        requested: the setting of payloads.
        needed: whether what is wrong with nsys makes a capture impossible; direct mode needs none.
    """
    bad = PROBLEM if needed else NOTE
    try:
        nsys = examine(explicit)
    except NvtxmoeError as error:
        direct = "" if needed else ": captures in direct mode (NVTXMOE_MODE=moe) need none"
        remedy = "Install Nsight Systems, or name one with --nsys or NVTXMOE_NSYS"
        return UnderNsys([Finding("nsys", bad, error_text(error) + direct, remedy)])
    findings = [Finding("nsys", OK, f"{nsys.version} ({nsys.path})", None, {"exports_binary": nsys.knows_blobs})]
    version = installation.versions.get("nvtx")
    if version is None:
        return UnderNsys(findings, nsys.version)
    recorded = list(_recording(installation, nsys, version, bad, environ))
    findings += recorded
    if any(finding.level != OK for finding in recorded):
        return UnderNsys(findings, nsys.version)
    encoding, reason = payload_encoding(requested, version, nsys.knows_blobs)
    findings += _payloads(encoding, reason, version, nsys, bad)
    return UnderNsys(findings, nsys.version, encoding)


def _payloads(encoding: str, reason: str, version: str, nsys: Nsys, bad: str) -> Iterator[Finding]:
    if encoding == BINARY and not carries_binary(version, nsys.knows_blobs):
        yield Finding(
            "payloads",
            bad,
            f"binary is asked for, and nsys {nsys.version} cannot export binary payloads",
            "Set NVTXMOE_PAYLOAD=words, or use an nsys of 2025",
        )
        return
    yield Finding("payloads", OK, f"{encoding}: {reason}", None, {"encoding": encoding})


def _recording(
    installation: Installed, nsys: Nsys, version: str, bad: str, environ: Mapping[str, str]
) -> Iterator[Finding]:
    """Record a few marks and look for them."""
    known = nvtx_records_under(version, nsys.version)
    fix = (
        f"Run {installation.path} -m pip install nvtx=={NVTX_FOR_ALL}, or use an nsys of 2025"
        if not known
        else f"Use an nsys of 2025 with nvtx {'.'.join(map(str, NVTX_WITH_BINARY))} or newer"
    )
    try:
        tried = try_out(installation.path, nsys, environ)
    except NvtxmoeError as error:
        problem = error_text(error)
        if known:
            yield Finding("recording", bad, f"a trial capture failed: {problem}", error.remedy or fix)
        else:
            yield Finding("recording", bad, f"nsys {nsys.version} records nothing of nvtx {version} ({problem})", fix)
        return
    details = {"marks": tried.ints, "of": MARKS, "array": tried.array}
    pair = f"nsys {nsys.version} and nvtx {version}"
    if tried.ints < MARKS:
        yield Finding("recording", bad, f"{pair}: {tried.ints} of {MARKS} marks were recorded", fix, details)
    elif carries_binary(version, nsys.knows_blobs) and not tried.array:
        yield Finding(
            "recording",
            bad,
            f"{pair}: ints were recorded, binary payloads were not",
            "Set NVTXMOE_PAYLOAD=words",
            details,
        )
    else:
        yield Finding("recording", OK, f"tried out: {pair} recorded {MARKS} of {MARKS} marks", None, details)


def try_out(python: Path, nsys: Nsys, environ: Mapping[str, str]) -> Tried:
    """Capture a few marks of a Python's nvtx in a temporary folder, and export them.

    Raises:
        NvtxmoeError: nsys fails, with its own words.
    """
    from nvtxmoe_analysis.readers.nsys_export import export_report  # noqa: PLC0415  only when it is tried

    quiet = {k: v for k, v in environ.items() if not k.startswith("NVTXMOE_")}
    with tempfile.TemporaryDirectory(prefix="nvtxmoe-doctor-") as folder:
        report = Path(folder) / "trial.nsys-rep"
        options = ["-t", "nvtx", "-s", "none", "--cpuctxsw=none", "-o", str(report)]
        try:
            done = subprocess.run(
                [nsys.path, "profile", *options, python, "-c", _PROGRAM],
                env=quiet,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TRY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NvtxmoeError(f"nsys profile did not end within {TRY_TIMEOUT_S:g} s") from None
        if done.returncode or not report.exists():
            lines = done.stdout.decode("utf-8", "replace").split(os.linesep)
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            raise NvtxmoeError(f"nsys profile ended with status {done.returncode} and said: {last}")
        return _look(export_report(report, nsys=nsys.path))


def _look(export: Path) -> Tried:
    with closing(sqlite3.connect(export)) as database:
        columns = {row[1] for row in database.execute("PRAGMA table_info(NVTX_EVENTS)")}
        blob = "length(e.binaryData)" if "binaryData" in columns else "0"
        rows = database.execute(
            f"SELECT coalesce(e.text, s.value), e.int64Value, {blob} FROM NVTX_EVENTS e "
            "LEFT JOIN StringIds s ON s.id = e.textId WHERE e.eventType = 34"
        ).fetchall()
    ints = sum(name == "nvtxmoe.doctor.int" and value is not None for name, value, _ in rows)
    return Tried(ints, any(name == "nvtxmoe.doctor.array" and size for name, _, size in rows))
