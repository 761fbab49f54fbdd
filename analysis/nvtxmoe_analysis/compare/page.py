"""The comparison as one HTML page, in the style of the report: sentences, charts, tables, notes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import polars as pl

from nvtxmoe_analysis.compare.compare import side_of
from nvtxmoe_analysis.compare.many import RESULT, Comparisons, not_in_all
from nvtxmoe_analysis.compare.measures import METRICS
from nvtxmoe_analysis.compare.page_charts import DIFFERS, change_chart, layer_chart, metric_rows
from nvtxmoe_analysis.compare.summary import summary
from nvtxmoe_analysis.compare.tables import without_repeats
from nvtxmoe_analysis.core.files import cannot_write, whole_file
from nvtxmoe_analysis.core.text import listed
from nvtxmoe_analysis.report.chart import Drawing, Table
from nvtxmoe_analysis.report.frame import framed
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.specification import specification, unvalidated

TITLE = "Mixture-of-experts comparison"
#: Layers and experts of a result in the table of what moved.
MOST_MOVERS = 10


def write_page(comparisons: Comparisons, path: Path) -> Path:
    """Write the page and return its path.

    Raises:
        NvtxmoeError: the file can't be written.
    """
    text = page(comparisons)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(error, path, "the page", "Choose another file with --html, or make room") from error
    return path


def page(comparisons: Comparisons) -> str:
    """Return the HTML. It loads nothing, and runs no script but its own."""
    with unvalidated():
        charts = dict(_charts(comparisons))
        drawn = {name: (specification(chart.chart), chart) for name, (_, chart) in charts.items()}
    template = (files("nvtxmoe_analysis.compare") / "assets" / "page.html.jinja").read_text(encoding="utf-8")
    first = next(iter(comparisons.results.values()))
    return framed(
        template,
        drawn,
        title=TITLE,
        subtitle=f"{listed(list(comparisons.results))} compared with {comparisons.baseline}",
        sentences=[
            summary(comparison, comparisons.baseline, name)["sentence"]
            for name, comparison in comparisons.results.items()
        ],
        charts=charts,
        figures=_metrics_table(comparisons),
        movers=_movers(comparisons),
        sides=_runs_table(comparisons),
        gates=list(_gates(comparisons)),
        notes=[f"{whose}{note}" for note, whose in _notes(comparisons)],
        baseline=comparisons.baseline,
        several=len(comparisons.results) > 1,
        confidence=f"{100 * first.options['confidence']:g}",
    )


def _charts(comparisons: Comparisons) -> Iterator[tuple[str, tuple[str, Drawing]]]:
    """Yield name, title and drawing of each chart that can be drawn."""
    summary_chart = change_chart(comparisons)
    if summary_chart is not None:
        yield "changes", ("Change of each metric", summary_chart)
    for name, metric in METRICS.items():
        chart = layer_chart(comparisons, name) if metric.whole is not None and not metric.per_token else None
        if chart is not None:
            yield f"layers-{name}", (f"Change of {name} by layer", chart)


def _metrics_table(comparisons: Comparisons) -> Table:
    """Return every metric of all layers together, by kind of step."""
    rows = [
        [
            row[RESULT], row["metric"], row["step_kind"], _value(row["unit"], row["value_a"]),
            _value(row["unit"], row["value_b"]),
            "-" if row["change_pct"] is None else f"{row['change_pct']:+.2f} %",
            _ends(row["change_pct_ci_low"], row["change_pct_ci_high"], "+.2f", " %"), _p(row["p_adjusted"]),
            DIFFERS[row["significant"]],
        ]
        for row in without_repeats(metric_rows(comparisons).to_dicts(), (RESULT, "metric"), "value_b")
    ]  # fmt: skip
    for name, comparison in comparisons.results.items():
        over_layers = comparison.activations.filter(pl.col("layer_idx").is_null())
        rows += [
            [
                name, "js", row["step_kind"],
                "-" if row["noise_bits"] is None else f"noise {row['noise_bits']:.4f} bits",
                f"{row['js_bits']:.4f} bits",
                "-" if row["excess_bits"] is None else f"{row['excess_bits']:+.4f} bits",
                _ends(row["ci_low"], row["ci_high"], ".4f", " bits"), _p(row["p_adjusted"]),
                DIFFERS[row["significant"]],
            ]
            for row in without_repeats(over_layers.to_dicts(), (), "js_bits")
        ]  # fmt: skip
    columns = (RESULT, "metric", "steps", "baseline", "result value", "change", "interval", "p", "differs")
    return Table(columns, rows, " ".join(not_in_all(comparisons)))


def _movers(comparisons: Comparisons) -> Table:
    """Return the experts that moved most."""
    rows = []
    for name, comparison in comparisons.results.items():
        moved = comparison.experts.filter(pl.col("significant").fill_null(False)).head(MOST_MOVERS)
        rows += [
            [
                name, str(row["layer_idx"]), str(row["expert_id"]), f"{row['share_a_pct']:.2f} %",
                f"{row['share_b_pct']:.2f} %", f"{row['difference_pct']:+.2f}",
                _ends(row["ci_low"], row["ci_high"], "+.2f", ""),
            ]
            for row in moved.iter_rows(named=True)
        ]  # fmt: skip
    columns = (RESULT, "layer", "expert", "share in the baseline", "share in the result", "change (points)", "interval")
    return Table(columns, rows, f"At most {MOST_MOVERS} per result, the largest terms of the divergence first.")


def _runs_table(comparisons: Comparisons) -> Table:
    first = next(iter(comparisons.results.values()))
    runs = {
        f"{comparisons.baseline} (baseline)": first.runs[0],
        **{n: comparison.runs[1] for n, comparison in comparisons.results.items()},
    }
    rows = []
    for name, run in runs.items():
        side = side_of(run)
        gpu = "yes" if side["gpu_time"] else "no"
        rows.append([name, side["verdict"], f"{side['steps']:,}", str(side["ranks"]), str(side["layers"]), gpu])
        rows[-1].append(str(side["folder"]))
    return Table((RESULT, "capture", "steps", "ranks", "MoE layers", "GPU time", "folder"), rows)


def _gates(comparisons: Comparisons) -> Iterator[str]:
    for name, comparison in comparisons.results.items():
        for outcome in comparison.outcomes:
            reason = f", {outcome.reason}" if outcome.reason else ""
            yield f"{name}: {outcome.gate.text}: {outcome.verdict}{reason}"


def _notes(comparisons: Comparisons) -> Iterator[tuple[str, str]]:
    """Yield each note once, with the names of its results unless it is about all."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, comparison in comparisons.results.items():
        for note in comparison.notes:
            names[note].append(name)
    for note, result_names in names.items():
        yield note, "" if len(result_names) == len(comparisons.results) else f"{listed(result_names)}: "


def _value(unit: str, value: float) -> str:
    return duration(value) if unit == "ns" else f"{value:,.2f}"


def _ends(low: float | None, high: float | None, form: str, unit: str) -> str:
    return "-" if low is None or high is None else f"{low:{form}} to {high:{form}}{unit}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"
