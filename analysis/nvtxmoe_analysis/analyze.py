"""From inputs to files: the whole of ``nvtxmoe analyze`` as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from nvtxmoe._version import __version__
from nvtxmoe_analysis.checks.check import Check
from nvtxmoe_analysis.core.files import check_folder
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.ingest.ingest import ingest
from nvtxmoe_analysis.ingest.task import Failure
from nvtxmoe_analysis.metrics.roofline.peaks import PeakOptions
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs import capacity
from nvtxmoe_analysis.outputs.as_written import AsWritten
from nvtxmoe_analysis.outputs.capture_validation import validate
from nvtxmoe_analysis.outputs.registry import declarations, document_builders, parquet_only, table_builders
from nvtxmoe_analysis.outputs.spec import FOLDER, VALIDATION, Document, Table
from nvtxmoe_analysis.outputs.sqlite_file import check_database, writing_database
from nvtxmoe_analysis.outputs.write import write_set
from nvtxmoe_analysis.readers.find_inputs import reports_of
from nvtxmoe_analysis.readers.open import refuse_mixture
from nvtxmoe_analysis.report.advice import Advice, Advised, advise, remove_findings, write_findings
from nvtxmoe_analysis.report.outdated import mark_outdated
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.run.run_facts import merge


@dataclass(frozen=True)
class Analysis:
    """What ``analyze`` found and wrote."""

    results: RunMetrics
    checks: list[Check]
    validation: dict[str, Any]
    folder: Path
    files: list[Path]
    advised: Advised

    @property
    def advice(self) -> Advice:
        """Findings and answers."""
        return self.advised.advice

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Reports that could not be read."""
        return self.results.failed

    @property
    def complete(self) -> bool:
        """The verdict."""
        return bool(self.validation["verdict"] == "complete")


def analyze(
    inputs: Sequence[Path],
    output: Path,
    *,
    selection: Selection | None = None,
    formats: Sequence[str] = ("csv",),
    capacity_factors: Sequence[float] = (),
    database: Path | None = None,
    cache_dir: Path | None = None,
    nsys: Path | None = None,
    jobs: int | None = 1,
    dask: str | None = None,
    peaks: PeakOptions | None = None,
    tell: Callable[[str, float | None], None] | None = None,
) -> Analysis:
    """Analyse exports, reports or sessions of one run and write the results into ``output/moe_expert_tracking``: all
    tables, or of sessions the standard set, which needs no GPU work.

    Parameters:
        inputs: what ``open_export`` opens, or folders of them (``find_inputs.reports_of``).
        formats: of the tables, see ``write.FORMATS``.
        capacity_factors: for moe_capacity, see ``capacity.factors``.
        database: a SQLite file that gets the tables too.
        jobs: how many reports to read at a time, each in a process of its own; None: as cores and memory allow. More
            than 1 needs a program whose main module can be imported, as ``multiprocessing`` does.
        dask: address of the scheduler of a Dask cluster that reads them.
        peaks: of the GPUs, in place of the table's: see ``roofline.peaks``.
        tell: called with what is being done and how far it is, see ``progress.Progress``.

    Of several reports, those that can't be read cost only what is in them: the results are of the others,
    ``Analysis.failed`` and the validation file name them, and the verdict is ``incomplete``.

    A report.html of earlier results gets a notice at its top that it is outdated.

    Raises:
        NvtxmoeError: bad input, or an output that can't be written. Nothing is left half-written.
    """
    selection, peaks = selection or Selection(), peaks or PeakOptions()
    progress = Progress(tell)
    options: dict[str, object] = {"nvtxmoe": __version__, "polars": pl.__version__, "formats": list(formats)}
    factors = capacity.factors(capacity_factors)
    options["capacity_factors"] = list(factors)
    peak_options = {"peak_gb_per_s": peaks.gb_per_s, "peak_tflop_per_s": peaks.tflop_per_s}
    options |= {name: value for name, value in peak_options.items() if value is not None}
    folder = output / FOLDER
    check_folder(folder)
    if database is not None:
        check_database(database, table_builders())
    inputs = reports_of(inputs)
    refuse_mixture(inputs)
    reports, failed = ingest(inputs, selection, cache_dir=cache_dir, nsys=nsys, jobs=jobs, dask=dask, progress=progress)
    progress.begin("joining")
    facts = merge(reports, selection, options)
    results = RunMetrics.of(facts, capacity_factors=factors, failed=tuple(failed), peaks=peaks)
    del reports, facts  # the results hold what they need of them
    results.prepare()
    build_table, build_document = table_builders(), document_builders()
    possible = [output for output in declarations().values() if not (output.gpu and results.direct)]
    table_stems = [output.stem for output in possible if isinstance(output, Table)]
    # The validation file comes last; the checks are needed for themselves too.
    document_stems = [output.stem for output in possible if isinstance(output, Document) and output.stem != VALIDATION]
    builds: list[Callable[[RunMetrics], Any]] = [
        validate,
        *(build_table[stem] for stem in table_stems),
        *(build_document[stem] for stem in document_stems),
    ]
    (checks, validation), *built = ordered_map(lambda build: build(results), builds)
    tables = dict(zip(table_stems, built[: len(table_stems)], strict=True))
    documents = {**dict(zip(document_stems, built[len(table_stems) :], strict=True)), VALIDATION: validation}
    progress.begin("writing")
    flat = {stem: table for stem, table in tables.items() if stem not in parquet_only()}

    advice_result: Future[Advice] = Future()

    def write() -> list[Path]:
        with nullcontext() if database is None else writing_database(database, flat):
            files = write_set(
                folder,
                tables,
                documents,
                formats,
                absent=(build_table.keys() - tables.keys()) | (build_document.keys() - documents.keys()),
                parquet_only=parquet_only(),
                ready=advice_result.result,
            )
        mark_outdated(folder)
        remove_findings(folder)  # of the tables before; a kill or a full disk must not leave them beside these
        _, file = write_findings(folder, advice_result.result())
        return [*files, *([] if database is None else [database]), file]

    # Findings are made of what the files will hold, while these are written. The files take their place when the
    # findings are there: an interrupt or a fault before leaves the earlier results, and one after that the new ones.
    with ThreadPoolExecutor(1, "nvtxmoe-writing") as aside:
        source = Source(AsWritten(folder, tables, documents, formats))
        writing = aside.submit(write)
        try:
            advice = advise(source)
            advice_result.set_result(advice)
        except BaseException as error:
            advice_result.set_exception(error)
            raise
        files = writing.result()
    return Analysis(results, checks, validation, folder, files, Advised(source, advice))
