"""Map and reduce for the nsys recipes: facts of one report, and files of all of them.

Imports nothing heavy before it is called: nsys forks its workers off the process that has imported this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvtxmoe_analysis.facts.capture_facts import CaptureFacts

#: Keyword arguments of ``Selection``.
Filters = Mapping[str, Any]


@dataclass(frozen=True)
class Written:
    """What a recipe wrote, and whether the capture can be trusted: ``reasons`` are empty where it is complete."""

    files: list[Path]
    verdict: str
    reasons: list[str]


def gather_report(report: str, *, nsys: str | None, filters: Filters) -> CaptureFacts:
    """The facts of one report: the map. Worker processes, also of other machines, import and run it.

    Parameters:
        report: a .nsys-rep, exported to SQLite first where no export of it is kept (``readers.nsys_export``).
        nsys: what exports it; None: see ``nsys_export.find_nsys``.

    Raises:
        NvtxmoeError: see ``open_export`` and ``gather``.
    """
    from nvtxmoe_analysis.facts.selection import Selection  # noqa: PLC0415
    from nvtxmoe_analysis.ingest.task import Task, read  # noqa: PLC0415  see above

    path = Path(report)
    return read(Task(path, path, Selection(**filters), nsys=None if nsys is None else Path(nsys)))


def write_reports(
    reports: Sequence[CaptureFacts],
    folder: Path,
    *,
    recipe: str,
    filters: Filters,
    csv: bool = False,
) -> Written:
    """Put the facts of all reports together and write those files of ``analyze`` that name the recipe: the reduce.

    Parameters:
        recipe: its name; see ``outputs.spec`` for how an output names it. Tables are Parquet; the validation file is
            always written.
        csv: write the tables as CSV too.

    Raises:
        NvtxmoeError: reports that do not belong together, or a folder that can't be written.
    """
    import polars as pl  # noqa: PLC0415  see above

    from nvtxmoe._version import __version__  # noqa: PLC0415
    from nvtxmoe_analysis.facts.selection import Selection  # noqa: PLC0415
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics  # noqa: PLC0415
    from nvtxmoe_analysis.outputs.capture_validation import validate  # noqa: PLC0415
    from nvtxmoe_analysis.outputs.registry import (  # noqa: PLC0415
        declarations,
        document_builders,
        parquet_only,
        table_builders,
    )
    from nvtxmoe_analysis.outputs.spec import VALIDATION, Document, Table  # noqa: PLC0415
    from nvtxmoe_analysis.outputs.write import write_set  # noqa: PLC0415
    from nvtxmoe_analysis.report.outdated import mark_outdated  # noqa: PLC0415
    from nvtxmoe_analysis.run.run_facts import merge  # noqa: PLC0415

    formats = ["parquet", *(["csv"] if csv else [])]
    options: dict[str, object] = {"nvtxmoe": __version__, "polars": pl.__version__, "formats": formats}
    results = RunMetrics.of(merge(reports, Selection(**filters), {**options, "recipe": recipe}))
    _, validation = validate(results)
    build_table, build_document = table_builders(), document_builders()
    recipe_outputs = [output for output in declarations().values() if output.recipe == recipe]
    files = write_set(
        folder,
        {output.stem: build_table[output.stem](results) for output in recipe_outputs if isinstance(output, Table)},
        {
            **{
                output.stem: build_document[output.stem](results)
                for output in recipe_outputs
                if isinstance(output, Document)
            },
            VALIDATION: validation,
        },
        formats,
        parquet_only=parquet_only(),
    )
    mark_outdated(folder)
    return Written(files, validation["verdict"], validation["reasons"])
