"""From a .nsys-rep to a SQLite export, by running nsys, kept in a cache that is never half a file.

How nsys fails was measured with 2023.4.4: exit 1 and no file, an empty one or one without a header; exit 0 and an
empty file when the disk was full. So it exports to a temporary folder, and only what is whole is moved from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import COMPANIONS, special_kind
from nvtxmoe_analysis.core.cache import cache_folder
from nvtxmoe_analysis.core.files import whole_file

NSYS_ENV = "NVTXMOE_NSYS"
CACHE_SUFFIX = ".nvtxmoe.sqlite"
REPORT_SUFFIX = ".nsys-rep"
BLOBS_OPTION = "--include-blobs"
#: A table of our own in a cache: which report it was made of, and whether with binary payloads.
STAMP = "NVTXMOE_EXPORT"
META, NVTX = "META_DATA_EXPORT", "NVTX_EVENTS"
MAGIC = b"SQLite format 3\0"
EDGE_BYTES = 65536


def find_nsys(explicit: Path | None = None) -> Path:
    """The nsys to run: ``explicit``, else the one that NVTXMOE_NSYS names, else ``nsys`` on the PATH.

    Raises:
        NvtxmoeError: none is there, or the one asked for cannot be run.
    """
    named = str(explicit or os.environ.get(NSYS_ENV, ""))
    path = Path(named or "nsys").expanduser()
    executable = shutil.which(path.absolute() if named and path.is_file() else path)
    if executable:
        return Path(executable).absolute()
    if named:
        raise _cannot_run(path, "it is not executable" if path.exists() else "no such file")
    raise NvtxmoeError(
        "no nsys was found, and a .nsys-rep can only be read by nsys",
        remedy=f"Install Nsight Systems here (or set {NSYS_ENV} to its nsys), or {_bring(Path('X.nsys-rep'))}",
    )


def export_report(
    report: Path, *, cache_dir: Path | None = None, nsys: Path | None = None, force: bool = False
) -> Path:
    """Export a report to SQLite, or reuse the export of an earlier call.

    Parameters:
        report: a .nsys-rep.
        cache_dir: where to keep the export, made if need be. Default: beside the report, else the user's cache.
        nsys: the nsys to run; see :func:`find_nsys`. Not needed where a whole export is kept already.
        force: export again whatever is kept.

    Returns:
        Path of a SQLite database that holds META_DATA_EXPORT and NVTX_EVENTS.

    Raises:
        NvtxmoeError: the report cannot be read, nsys cannot export it, or the cache cannot be written.
    """
    fingerprint = _fingerprint(report)
    cache = _cache_path(report, cache_dir)
    candidates = [cache] if cache_dir else [_export_path_beside(report), cache]
    for candidate in candidates:
        if not force and _is_reusable(candidate, report, fingerprint, nsys):
            return candidate
    try:
        _export(report, cache, find_nsys(nsys), fingerprint)
    except NvtxmoeError as error:
        where = error.where or report
        raise NvtxmoeError(error.what, where=where, remedy=error.remedy) from error
    return cache


def _fingerprint(report: Path) -> str:
    """A digest of size and both ends: another report moved into this one's place brings its old mtime along."""
    try:
        with report.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode() + b"\n" + file.read(EDGE_BYTES))
            file.seek(max(0, size - EDGE_BYTES))
            digest.update(file.read(EDGE_BYTES))
    except OSError as error:
        what = f"the report cannot be read: {error.strerror or error}"
        raise NvtxmoeError(what, where=report, remedy="Give a .nsys-rep that nsys wrote") from error
    if size == 0:
        remedy = f"Copy it again from the capture machine, or {_bring(report)}"
        raise NvtxmoeError("the report is empty", where=report, remedy=remedy)
    return digest.hexdigest()


def _export_path_beside(report: Path) -> Path:
    return report.with_name(report.stem + CACHE_SUFFIX)


def _cache_path(report: Path, cache_dir: Path | None) -> Path:
    if cache_dir is None and os.access(report.parent, os.W_OK | os.X_OK):
        return _export_path_beside(report)
    if cache_dir is None:
        cache_dir = cache_folder()
    # Reports of one name from several folders meet here.
    origin = hashlib.sha256(os.fsencode(os.path.realpath(report))).hexdigest()[:10]
    return cache_dir / f"{report.stem}.{origin}{CACHE_SUFFIX}"


def _is_reusable(cache: Path, report: Path, fingerprint: str, nsys: Path | None) -> bool:
    """Whether a kept export is whole, newer than its report, made of it, and with all that nsys can give."""
    try:
        status = cache.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            return False
        if any(special_kind(cache.with_name(cache.name + suffix)) for suffix in COMPANIONS):
            return False
        if status.st_mtime_ns <= report.stat().st_mtime_ns:  # an equal time may hide a later write
            return False
    except OSError:
        return False
    stamp = _stamp(cache)
    if stamp is None or stamp[0] != fingerprint:
        return False
    return stamp[1] or not _gives_blobs(nsys)


def _gives_blobs(nsys: Path | None) -> bool:
    """Whether an nsys is here that exports binary payloads. Without one, the kept export is all there is."""
    try:
        return _knows_blobs(find_nsys(nsys))
    except NvtxmoeError:
        return False


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True)


def _table_names(path: Path) -> frozenset[str]:
    """Names of a database's tables; none when it is not SQLite, or shorter than its own header says."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
        page_bytes = int.from_bytes(header[16:18], "big")
        page_bytes = 65536 if page_bytes == 1 else page_bytes
        whole_bytes = page_bytes * int.from_bytes(header[28:32], "big")
        if len(header) < 100 or header[:16] != MAGIC or path.stat().st_size < whole_bytes:
            return frozenset()
        with closing(_open(path, "ro")) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except (OSError, sqlite3.Error):
        return frozenset()
    return frozenset(str(name) for (name,) in rows)


def _stamp(cache: Path) -> tuple[str, bool] | None:
    """The fingerprint of the report that a whole export was made of, and whether with blobs; else None."""
    if not _table_names(cache) >= {META, NVTX, STAMP}:
        return None
    try:
        with closing(_open(cache, "ro")) as database:
            row = database.execute(f"SELECT report, blobs FROM {STAMP}").fetchone()
    except sqlite3.Error:
        return None
    return (str(row[0]), bool(row[1])) if row else None


def _write_stamp(export: Path, fingerprint: str, blobs: bool) -> None:
    with closing(_open(export, "rw")) as database, database:
        database.execute(f"CREATE TABLE {STAMP} (report TEXT NOT NULL, blobs INTEGER NOT NULL)")
        database.execute(f"INSERT INTO {STAMP} VALUES (?, ?)", (fingerprint, int(blobs)))


def _export(report: Path, cache: Path, nsys: Path, fingerprint: str) -> None:
    """Run nsys into a temporary folder beside the cache, check what came, move it into place."""
    blobs = _knows_blobs(nsys)
    options = ["--type", "sqlite", *([f"{BLOBS_OPTION}=true"] if blobs else [])]
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(cache) as stage:
            part = stage.with_name("export.sqlite")  # the ending that nsys wants
            result = _run(nsys, "export", *options, "-o", str(part), str(report.absolute()))
            _check(report, part, cache, nsys, result)
            _write_stamp(part, fingerprint, blobs)
            part.replace(stage)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NvtxmoeError(
            f"the export cannot be kept here: {reason or error}",
            where=cache,
            remedy="Make room or give another folder with --cache-dir",
        ) from error


class _Result(NamedTuple):
    status: int
    text: str

    @property
    def disk_full(self) -> bool:
        return "disk is full" in self.text or "No space left" in self.text

    @property
    def reason(self) -> str:
        """nsys's own words: what its exporter says, else its exception, else its last line that says something."""
        lines = [line.strip() for line in re.split(r"[\r\n]+", self.text)]
        messages = [line for line in lines if line and not line.startswith(("Processing ", "usage:", "Try '"))]
        for pattern in (
            r"Exportation error: (?!.*Throw in function)(.+)",
            r"\[.*tag_message\*?\] = (.+)",
            r"std::exception::what: (.+)",
        ):
            for line in reversed(messages):
                if match := re.match(pattern, line):
                    return match[1].rstrip(".")
        return messages[-1].rstrip(".") if messages else "it printed nothing"


def _run(nsys: Path, *arguments: str) -> _Result:
    """Run nsys to its end, however long it takes. Whatever interrupts that kills it and its children first."""
    try:
        process = subprocess.Popen(
            [nsys, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # nsys may be a wrapper script: its children have to die with it
        )
    except OSError as error:
        raise _cannot_run(nsys, error.strerror or str(error)) from error
    try:
        output, _ = process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return _Result(process.returncode, output.decode("utf-8", "replace"))


def _knows_blobs(nsys: Path) -> bool:
    return BLOBS_OPTION in _run(nsys, "export", "--help").text


def _check(report: Path, part: Path, cache: Path, nsys: Path, result: _Result) -> None:
    """Raise unless the export is whole, whatever the exit status says."""
    table_names = _table_names(part)
    if result.disk_full:
        raise NvtxmoeError(
            f"the disk is full; nsys export said: {result.reason}",
            where=cache.parent,
            remedy="Make room (an export takes several times its report) or give another folder with --cache-dir",
        )
    if result.status == 0 and {META, NVTX} <= table_names:
        return
    if result.status == 0 and META in table_names:
        raise NvtxmoeError(
            "the report has no NVTX events: it was captured without `-t nvtx`, or without nvtxmoe switched on",
            where=report,
            remedy="On the capture machine, capture again with `nsys profile -t cuda,nvtx` and nvtxmoe switched on",
        )
    raise _failed(report, nsys, result)


def _failed(report: Path, nsys: Path, result: _Result) -> NvtxmoeError:
    """Why nsys made no whole export: what the two versions tell, and nsys's own words."""
    with report.open("rb") as file:
        writer = _version(rb"Report (\d+)@(\d+)@(\d+)", file.read(200))
    reader = _version(rb"version (\d+)\.(\d+)\.(\d+)", _run(nsys, "--version").text.encode())
    parse_error = "ProtobufParseException" in result.text
    reader_text = f"the nsys here ({_dotted(reader)}, {nsys})"
    killed_by = -result.status if result.status < 0 else result.status - 128  # a wrapper says 128 + signal
    if killed_by > 0:
        what = f"{reader_text} was killed by signal {killed_by} while it exported"
        return NvtxmoeError(what, where=report, remedy=f"Give it more memory, or {_bring(report)}")
    failure = f"nsys export ended with status {result.status} and said: {result.reason}"
    if writer and reader and writer > reader:
        what = f"written by nsys {_dotted(writer)}, newer than {reader_text}; {failure}"
    elif parse_error and not (writer and reader):
        what = f"damaged, or written by a newer nsys than {reader_text}; {failure}"
    elif writer is None:
        what = f"not a report that {reader_text} knows; {failure}"
    else:
        what = f"{reader_text} could not export it whole, it may be damaged or cut short; {failure}"
        return NvtxmoeError(what, where=report, remedy=f"Copy it again from the capture machine, or {_bring(report)}")
    newer = f"Set {NSYS_ENV} to an nsys at least as new as the one that captured it, or"
    return NvtxmoeError(what, where=report, remedy=f"{newer} {_bring(report)}")


def _version(pattern: bytes, text: bytes) -> tuple[int, ...] | None:
    match = re.search(pattern, text)
    return tuple(int(part) for part in match.groups()) if match else None


def _dotted(version: tuple[int, ...] | None) -> str:
    return ".".join(map(str, version)) if version else "version unknown"


def _cannot_run(nsys: Path, reason: str) -> NvtxmoeError:
    remedy = f"Give an nsys of this machine with --nsys or {NSYS_ENV}, or {_bring(Path('X.nsys-rep'))}"
    return NvtxmoeError(f"nsys cannot be run ({nsys}): {reason}", remedy=remedy)


def _bring(report: Path) -> str:
    """What works on the machine that captured, whatever is missing here."""
    export, name = shlex.quote(f"{report.stem}.sqlite"), shlex.quote(report.name)
    command = f"nsys export --type sqlite {BLOBS_OPTION}=true -o {export} {name}"
    return f"on the capture machine run `{command}` and bring {export}"
