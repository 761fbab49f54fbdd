"""HTML for the output of a notebook's cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path

from nvtxmoe_analysis.core.files import cannot_write, whole_file
from nvtxmoe_analysis.report.finding_record import FindingRecord

#: Pixels of a page shown in a cell.
HEIGHT = 900


class InlinePage:
    """A page that needs nothing else, shown in a frame of the cell.

    Attributes:
        html: the whole page.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def __repr__(self) -> str:
        return f"InlinePage({len(self.html):,} characters)"

    def _repr_html_(self) -> str:
        """Return a frame that runs the page's own scripts and reaches nothing of the notebook."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" title="nvtxmoe report" '
            f'style="width:100%;height:{HEIGHT}px;border:1px solid #8884"></iframe>'
        )

    def save(self, file: str | PathLike[str]) -> Path:
        """Write the page into a file and return its path.

        Raises:
            NvtxmoeError: the file cannot be written.
        """
        path = Path(file)
        try:
            with whole_file(path) as stage:
                stage.write_text(self.html, encoding="utf-8")
        except OSError as error:
            raise cannot_write(error, path, "the report", "Name a file in a writable folder") from error
        return path


def summary(
    folder: Path,
    verdict: str,
    reasons: Sequence[str],
    findings: Sequence[FindingRecord],
    charts: Mapping[str, str],
    outputs: Sequence[str],
) -> str:
    """Return what a results folder holds as HTML in the notebook's own colours.

    Parameters:
        verdict: of the capture; empty if the validation file is absent.
        charts: title by name.
        outputs: names of the tables and documents that are there.
    """
    items = "".join(f"<li>{_finding(finding)}</li>" for finding in findings)
    names = "".join(f"<li><code>results.chart({escape(repr(n))})</code> {escape(t)}</li>" for n, t in charts.items())
    listed = ", ".join(f"<code>{escape(name)}</code>" for name in outputs)
    capture = f" &middot; capture {escape(verdict)}" if verdict else ""
    reasons_html = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return (
        f"<div><p><b>nvtxmoe results</b> in <code>{escape(str(folder))}</code>{capture}</p>"
        + (f"<ul>{reasons_html}</ul>" if reasons_html else "")
        + (f"<ol>{items}</ol>" if items else "<p>No finding.</p>")
        + f"<details><summary>Charts</summary><ul>{names}</ul></details>"
        + f"<details><summary>Tables and documents</summary><p>{listed}</p></details>"
        + "<p>The whole report: <code>results.report()</code></p></div>"
    )


def _finding(finding: FindingRecord) -> str:
    sure = [f"How sure: {finding.certainty}. {finding.how_sure}".rstrip()]
    steps = ("Next", finding.next_step), ("Command", finding.command), ("Expected", finding.expected)
    more = [*finding.details, *(f"{name}: {text}" for name, text in steps if text), *sure]
    title = f"<b>{escape(finding.topic)}</b>: {escape(finding.title)}"
    return f"<details><summary>{title}</summary>{''.join(f'<p>{escape(text)}</p>' for text in more)}</details>"
