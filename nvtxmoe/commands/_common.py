"""What the commands share: options, the console, printing JSON."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nvtxmoe.errors import INCOMPLETE, NvtxmoeError

if TYPE_CHECKING:
    from nvtxmoe_analysis.analyze import Analysis

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    """A path that every library here can open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        try:
            str(path).encode()
        except UnicodeEncodeError:
            self.fail(f"{str(path)!r} is not UTF-8; rename the file or folder", param, ctx)
        return path


PATH = _Path(path_type=Path, readable=False)


def command(name: str, example: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command with ``--debug`` and an example in its help. It returns the exit code."""

    def wrap(function: Callable[..., int | None]) -> click.Command:
        made = click.command(name, epilog="\b\nExample:\n" + "\n".join(f"  {e}" for e in example.splitlines()))(
            function
        )
        made.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        )
        return made

    return wrap


def refuse_results(paths: Sequence[Path]) -> None:
    """Refuse folders of results where captures are read.

    Raises:
        NvtxmoeError: a path is a folder of results that holds no capture.
    """
    from nvtxmoe_analysis.outputs.spec import FOLDER, VALIDATION  # noqa: PLC0415  polars only when needed
    from nvtxmoe_analysis.readers.find_inputs import holds_capture  # noqa: PLC0415

    for path in paths:
        try:
            holds_results = (path / FOLDER).is_dir() or (path / f"{VALIDATION}.json").is_file()
        except OSError:
            continue  # whoever opens it says what is wrong
        if holds_results and not holds_capture(path):
            raise NvtxmoeError(
                "results, not a capture", where=path, remedy=f"Show them with `nvtxmoe report {shlex.quote(str(path))}`"
            )


def opening_options(function: F) -> F:
    """Options of every command that opens a .nsys-rep."""
    function = click.option(
        "--nsys",
        type=PATH,
        help="The nsys that exports a .nsys-rep. Default: $NVTXMOE_NSYS, then nsys on the PATH.",
    )(function)
    return click.option(
        "--cache-dir", type=PATH, help="Where exports of .nsys-rep files are kept. Default: beside the report."
    )(function)


def ending(done: Analysis, *, strict: bool, partial_ok: bool) -> int:
    """The exit status of an analysis that has been shown.

    Raises:
        NvtxmoeError: reports could not be read, and nobody said that this is fine.
    """
    if done.failed and not partial_ok:
        number, first = len(done.failed), done.failed[0]
        more = f", and {number - 1} more" if number > 1 else ""
        raise NvtxmoeError(
            f"the results lack {'a report that' if number == 1 else f'{number} reports that'} could not be read: "
            f"{first.source}{more}",
            remedy="See above; give --partial-ok where that is no fault",
        )
    return INCOMPLETE if strict and not done.complete else 0


partial_option = click.option(
    "--partial-ok",
    is_flag=True,
    help="Of several inputs, some may fail: exit with 0, not 2, if any could be read (--strict: 3).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def renew_report(
    done: Analysis, report_progress: Callable[[str, float | None], None], *, with_report: bool
) -> list[str]:
    """Write report.html where it is wanted, or where one of earlier results stands, which would contradict the tables.

    Returns:
        The page's path, or nothing.
    """
    from nvtxmoe_analysis.report.result import page_of  # noqa: PLC0415  polars only when needed

    if not with_report and not page_of(done.folder).is_file():
        return []
    from nvtxmoe_analysis.report import report  # noqa: PLC0415  altair only where it is asked for

    report_progress("report", None)
    return [str(report(done.folder, advised=done.advised).page)]
