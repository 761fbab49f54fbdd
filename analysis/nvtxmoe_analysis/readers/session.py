"""A session of direct mode: the journals of a run's processes, in the place of an export of nsys."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.journal import MAGIC, RANKS, SUFFIX
from nvtxmoe_analysis.readers.base import Export

KIND = "journal"
#: How capture names a journal: rank and process id.
_NAME = re.compile(rf"rank([0-9]{{1,9}})-([0-9]{{1,9}}){re.escape(SUFFIX)}")
#: Process ids are smaller; numbers from here on tell processes apart whose id is unknown, or taken.
_NO_PID = 1 << 24


class Session(Export):
    """A session: journals, and none of the tables of nsys.

    Parameters:
        source: a session's folder, the folder of journals in it, or one journal.

    Attributes:
        files: the journals by a number of their process: its id, or, where that is unknown or another host's process
            has it too, a number that no process has.
    """

    kind = KIND

    def __init__(self, source: Path) -> None:
        self.files: Mapping[int, Path] = _numbered(find_journals(source))
        super().__init__(source)

    def _read_layout(self) -> dict[str, tuple[str, ...]]:
        return {}

    def _files(self) -> Sequence[Path]:
        return []  # each is opened once, and a run that goes on writes on

    # There is no table, so nobody asks for one's rows.
    def _read(
        self,
        name: str,
        columns: Sequence[str],  # noqa: ARG002
        only: tuple[str, Collection[int]] | None,  # noqa: ARG002
        row: bool,  # noqa: ARG002
    ) -> pl.DataFrame:
        raise KeyError(name)

    def _batches(
        self,
        name: str,
        columns: Sequence[str],  # noqa: ARG002
        only: tuple[str, Collection[int]] | None,  # noqa: ARG002
    ) -> Iterator[pl.DataFrame]:
        raise KeyError(name)

    def _row_count(self, name: str) -> int:
        raise KeyError(name)

    def read_blobs(self, domain_ids: Collection[int]) -> pl.DataFrame:  # noqa: ARG002
        """There are none."""
        return pl.DataFrame(schema={"row": pl.Int64, "blob": pl.Binary})


def is_session(path: Path) -> bool:
    """Whether something is of direct mode, as far as names and first bytes tell; it need not be whole."""
    if path.is_dir():
        return (path / RANKS).is_dir() or (path.absolute().name == RANKS and any(path.glob(f"*{SUFFIX}")))
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return path.suffix == SUFFIX or file.read(len(MAGIC)) == MAGIC
    except OSError:  # whoever opens it to read it says what is wrong
        return False


def find_journals(path: Path) -> list[Path]:
    """The journals of a session's folder (or of the folder of journals in it), by rank; or the one named.

    Raises:
        NvtxmoeError: there is none.
    """
    if not path.exists():
        raise NvtxmoeError("no such file or folder", where=path, remedy="Give a session's folder")
    if path.is_file():
        return [path]
    folder = path if path.absolute().name == RANKS else path / RANKS
    journals = [file for file in folder.glob(f"*{SUFFIX}") if file.is_file()]
    if not journals:
        inside = sorted(folder for folder in path.glob("*") if (folder / RANKS).is_dir())
        looked = f"no journals in it ({RANKS}/*{SUFFIX})"
        remedy = f"Give one of the sessions in it, as {inside[-1]}" if inside else "Give a session's folder"
        raise NvtxmoeError(looked, where=path, remedy=remedy)
    return sorted(journals, key=lambda file: (*_rank_and_pid(file), file.name))


def require_session(path: Path) -> None:
    """Refuse what is no session of direct mode, as far as that can be told without reading it.

    Raises:
        NvtxmoeError: nothing there, no journal in it, or an export of nsys.
    """
    for journal in find_journals(path):
        if not is_session(journal):
            raise NvtxmoeError(
                "not a journal of nvtxmoe",
                where=path,
                remedy="Give a session's folder; `nvtxmoe analyze` reads exports and reports of nsys",
            )


def session_folder(path: Path) -> Path:
    """The session's folder that a session, its folder of journals, or one of those is or lies in.

    Raises:
        NvtxmoeError: a journal that lies elsewhere.
    """
    folder = path if path.is_dir() else path.absolute().parent
    if folder.absolute().name == RANKS:
        return folder.absolute().parent
    if not path.is_dir():
        raise NvtxmoeError(
            f"a journal that lies in no session's folder {RANKS}", where=path, remedy="Say with -o where the results go"
        )
    return folder


def pid_in_name(path: Path) -> int | None:
    """The process id that a journal's name tells."""
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else None


def _rank_and_pid(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2])) if match else (-1, -1)


def _numbered(paths: Sequence[Path]) -> dict[int, Path]:
    numbered: dict[int, Path] = {}
    for index, path in enumerate(paths):
        pid = pid_in_name(path)
        numbered[_NO_PID + index if pid is None or pid >= _NO_PID or pid in numbered else pid] = path
    return numbered
