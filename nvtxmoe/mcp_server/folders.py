"""Results folders inside the folders that the server was given, and nothing outside them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import COMMIT
from nvtxmoe_analysis.outputs.read import Results, no_results
from nvtxmoe_analysis.outputs.registry import declarations
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.report.advice import Advice, advise
from nvtxmoe_analysis.report.finding_record import FindingRecord, records
from nvtxmoe_analysis.report.first_screen import Answer
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import named_sets, steady, steady_others

#: How deep below a given folder results are looked for.
MOST_DEPTH = 4
#: Folders that are looked into at most.
MOST_FOLDERS = 2_000
#: Result folders whose tables stay in memory.
KEPT = 4


class Opened:
    """A results folder whose files all lie inside the given folders.

    Attributes:
        results: its tables and documents.
    """

    def __init__(self, folder: Path) -> None:
        self.results = Results(folder)

    @cached_property
    def findings(self) -> list[FindingRecord]:
        """Findings of the report, the most important first."""
        return records(self._advice.findings, self._advice.step_sets)

    @property
    def answers(self) -> Sequence[Answer]:
        """Answers to the four questions of the report's first screen."""
        return self._advice.answers

    @cached_property
    def step_sets(self) -> Mapping[str, frozenset[int]]:
        """The steady steps of each kind and those left out, by name; empty without GPU time of steps."""
        source = Source(self.results)
        return named_sets(steady(source), steady_others(source))

    @cached_property
    def _advice(self) -> Advice:
        return advise(Source(self.results))


class Folders:
    """The folders that the server was given.

    Parameters:
        roots: folders as the user named them.

    Raises:
        NvtxmoeError: one of them is no folder.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for folder in roots:
            if not folder.is_dir():
                raise no_results(folder)
        self._roots = tuple(roots)
        self._real = tuple(os.path.realpath(folder) for folder in roots)

    def names(self) -> list[str]:
        """Return the result folders in the given folders, each once, as :meth:`open` takes them."""
        paths = {os.path.realpath(path): path for root in self._roots for path in self._below(root)}
        return sorted(str(path) for path in paths.values())

    def open(self, name: str) -> Opened:
        """Open a results folder: a name of :meth:`names`, or a path inside a given folder.

        Raises:
            NvtxmoeError: it is outside the given folders, holds no results, holds a file that leads out of the given
                folders, or a killed program left it half replaced.
        """
        folder = self.folder(name)
        files = [path for output in declarations() if (path := Results(folder).path(output)) is not None]
        for file in files:
            if not self._is_inside(os.path.realpath(file)):
                raise self._outside(file)
        return _opened(folder, tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))

    def folder(self, name: str) -> Path:
        """Return the real path of the folder that holds the result files. It raises what :meth:`open` raises."""
        path = self._inside(name)
        for candidate in (path / FOLDER, path):
            real = Path(os.path.realpath(candidate))
            if not self._is_inside(str(real)):
                raise self._outside(candidate)
            if not _holds_results(real):
                continue
            if os.path.lexists(real / COMMIT):
                raise NvtxmoeError(
                    "nvtxmoe was killed while it replaced files",
                    where=candidate,
                    remedy=f"Run `nvtxmoe report {path}`, which finishes that: this server only reads",
                )
            return real
        raise no_results(path)

    def _inside(self, name: str) -> Path:
        """Return the real path of a name that is inside a given folder; what is outside is never looked at."""
        inside = []
        for candidate in (Path(name), *(root / name for root in self._roots)):
            try:
                real = os.path.realpath(candidate)
            except (ValueError, OSError):  # a NUL character; links in a circle
                continue
            if self._is_inside(real):
                inside.append(Path(real))
        if not inside:
            raise self._outside(name)
        return next((path for path in inside if os.path.isdir(path)), inside[0])  # noqa: PTH112  no error for a bad name

    def _is_inside(self, real: str) -> bool:
        return any(real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in self._real)

    def _outside(self, name: str | Path) -> NvtxmoeError:
        roots = ", ".join(map(str, self._roots))
        return NvtxmoeError(
            "outside the folders that this server may read", where=name, remedy=f"Name a folder inside {roots}"
        )

    def _below(self, root: Path) -> Iterator[Path]:
        """Yield result folders below a given folder, not through links to folders."""
        for looked, (place, names, _) in enumerate(os.walk(root), 1):
            path = Path(place)
            if _holds_results(path / FOLDER) or _holds_results(path):
                yield path
            deep = len(path.relative_to(root).parts) >= MOST_DEPTH or looked >= MOST_FOLDERS
            names[:] = [] if deep else sorted(n for n in names if n != FOLDER and not n.startswith("."))


def _holds_results(folder: Path) -> bool:
    return any(
        (folder / f"{output.stem}.{form}").is_file() for output in declarations().values() for form in output.forms
    )


@lru_cache(KEPT)
def _opened(folder: Path, stamp: tuple[tuple[Path, int, int], ...]) -> Opened:  # noqa: ARG001  a part of the key
    return Opened(folder)
