"""Build the files of the report from a results folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from nvtxmoe_analysis.core.file_set import replace_set, staging
from nvtxmoe_analysis.core.files import cannot_write, check_folder
from nvtxmoe_analysis.core.text import listed, number
from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.outputs.registry import declarations
from nvtxmoe_analysis.report.advice import FINDINGS, Advice, Advised, advise, text_of
from nvtxmoe_analysis.report.chart import ChartModule, Drawing
from nvtxmoe_analysis.report.charts import chart_modules
from nvtxmoe_analysis.report.commands import output_folder
from nvtxmoe_analysis.report.images import image_files
from nvtxmoe_analysis.report.page import Placed, page
from nvtxmoe_analysis.report.result import REPORT, Report
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.specification import specification, unvalidated
from nvtxmoe_analysis.report.trust import processes


@dataclass(frozen=True)
class Composed:
    """A report before it is written: advice, charts in the order of the page, and the page."""

    advice: Advice
    charts: Sequence[Placed]
    html: str


def build(folder: Path, *, images: bool, advised: Advised | None = None) -> Report:
    """See ``nvtxmoe_analysis.report.report``."""
    source = Source(load(folder)) if advised is None else advised.source
    output = output_folder(source.loaded.folder)
    check_folder(output)
    composed = compose(source, None if advised is None else advised.advice)
    charts = composed.charts
    pictures: dict[str, bytes] = {}
    if images:
        for chart in charts:
            if chart.drawing is not None:
                pictures |= image_files(f"{REPORT}-{chart.name}", chart.spec, chart.drawing.data)
    stale = {f"{REPORT}-{chart.name}.{form}" for chart in charts for form in ("svg", "png")} - pictures.keys()
    texts = {FINDINGS: text_of(composed.advice).encode(), f"{REPORT}.html": composed.html.encode()}
    _write(output, {**pictures, **texts}, stale if images else set())
    return Report(
        output / f"{REPORT}.html",
        composed.advice,
        [chart.name for chart in charts if chart.drawing is not None],
        {chart.name: chart.reason for chart in charts if chart.drawing is None},
        [output / name for name in pictures],
        sorted(set(source.absent.values())),
    )


def compose(source: Source, advice: Advice | None = None) -> Composed:
    """Return findings, charts and page of a results folder.

    Parameters:
        advice: of this source, if it is known already.
    """
    if advice is None:
        advice = advise(source)
    charts = [placed(source, name, module) for name, module in chart_modules().items()]
    html = page(
        advice,
        charts,
        subtitle=_subtitle(source),
        folder=str(source.loaded.folder),
        absent=sorted(set(source.absent.values())),
    )
    return Composed(advice, charts, html)


def placed(source: Source, name: str, module: ChartModule) -> Placed:
    """Return a chart with its specification, or with the reason why there is none."""
    with unvalidated():
        drawing = module.build(source)
        spec = specification(drawing.chart) if isinstance(drawing, Drawing) else {}
    return Placed(name, module.TITLE, module.SECTION, drawing, spec)


def _subtitle(source: Source) -> str:
    """Return one line about the capture: device, versions, ranks, steps, layers, age of the result files."""
    validation = source.document("validation")
    captured = processes(validation)
    devices = sorted({str(process["device"]) for process in captured if process.get("device")})
    versions = sorted({f"vLLM {process['vllm']}" for process in captured if process.get("vllm")})
    layers = source.document("summary")
    steps = (validation.get("selection") or {}).get("steps_kept")
    shapes = sorted({f"{layer['num_experts']} experts, top-{layer['top_k']}" for layer in layers.values()})
    parts = [
        f"{len(captured)} x {listed(devices)}" if devices else f"{len(captured)} processes" if captured else "",
        *versions,
        f"{len(layers)} MoE layers of {listed(shapes, 2)}" if layers else "",
        _steps(steps, len(captured)) if isinstance(steps, int) else "",
        "recorded without nsys: no GPU time" if source.direct else "",
        f"result files of {_written(source):%Y-%m-%d %H:%M} UTC",
    ]
    return " · ".join(part for part in parts if part)


def _steps(rank_steps: int, ranks: int) -> str:
    """Return the steps kept in words: a step is one call of all ranks."""
    if ranks and rank_steps % ranks == 0:
        return f"{number(rank_steps // ranks, 'step')} on {number(ranks, 'rank')}"
    return f"{rank_steps:,} (rank, step)"


def _written(source: Source) -> datetime:
    """Return when the newest result file was written."""
    files = filter(None, map(source.loaded.path, declarations()))
    return datetime.fromtimestamp(max(file.stat().st_mtime for file in files), timezone.utc)


def _write(folder: Path, contents: Mapping[str, bytes], stale: set[str]) -> None:
    """Replace the files of the report together, and remove images of charts that are no more."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with staging(folder) as stage:
            for name, content in contents.items():
                (stage / name).write_bytes(content)
            replace_set(folder, stage, list(contents), sorted(stale))
    except OSError as error:
        raise cannot_write(error, folder, "the report", "Make room, or make the folder writable") from error
