"""A results folder that shows itself: what ``nvtxmoe_analysis.load`` returns."""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

from nvtxmoe_analysis.outputs.read import Results, no_such
from nvtxmoe_analysis.outputs.read import load as load_tables
from nvtxmoe_analysis.outputs.registry import declarations

if TYPE_CHECKING:
    from nvtxmoe_analysis.notebook.chart import NotebookChart
    from nvtxmoe_analysis.notebook.page import InlinePage
    from nvtxmoe_analysis.report.finding_record import FindingRecord
    from nvtxmoe_analysis.report.results import Source


def load(folder: str | PathLike[str]) -> NotebookResults:
    """Open a folder of results.

    Parameters:
        folder: DIR of ``nvtxmoe analyze -o DIR`` or ``nvtxmoe merge``, or ``moe_expert_tracking`` inside it.

    Raises:
        NvtxmoeError: see ``outputs.read.load``.
    """
    return NotebookResults(load_tables(folder).folder)


class NotebookResults(Results):
    """Results with findings, charts and the report. Tables and documents: see :class:`outputs.read.Results`.

    As the last value of a cell it shows its findings and the names of its charts and tables. Findings, charts and the
    report are computed when they are first asked for, from the files as they then are.
    """

    @property
    def charts(self) -> list[str]:
        """Names of the report's charts, in the order of the page."""
        from nvtxmoe_analysis.report.charts import chart_modules  # noqa: PLC0415  altair only for charts

        return list(chart_modules())

    def chart(self, name: str) -> NotebookChart:
        """Return a chart of the report. One that these results cannot draw shows the reason.

        Raises:
            NvtxmoeError: there is no chart of that name.
        """
        from nvtxmoe_analysis.notebook.chart import NotebookChart  # noqa: PLC0415
        from nvtxmoe_analysis.report.build import placed  # noqa: PLC0415  altair only for charts
        from nvtxmoe_analysis.report.charts import chart_modules  # noqa: PLC0415

        modules = chart_modules()
        if name not in modules:
            raise no_such("chart", name, modules)
        made = placed(self._source, name, modules[name])
        return NotebookChart(name, made.title, made.made, made.spec)

    @cached_property
    def findings(self) -> list[FindingRecord]:
        """Findings of the report, the most important first, each with its numbers and their origin."""
        from nvtxmoe_analysis.report.finding_record import finding_records  # noqa: PLC0415  only when asked for

        return finding_records(self._source)

    def report(self) -> InlinePage:
        """Return the report's page, which shows itself in a frame of the cell. No file is written."""
        from nvtxmoe_analysis.notebook.page import InlinePage  # noqa: PLC0415
        from nvtxmoe_analysis.report.build import compose  # noqa: PLC0415  altair only for charts

        return InlinePage(compose(self._source).html)

    @cached_property
    def _source(self) -> Source:
        from nvtxmoe_analysis.report.results import Source  # noqa: PLC0415

        return Source(self)

    def _repr_html_(self) -> str:
        from nvtxmoe_analysis.notebook.page import summary  # noqa: PLC0415
        from nvtxmoe_analysis.report.charts import chart_modules  # noqa: PLC0415  altair only for charts

        validation: dict[str, Any] = self._source.document("validation")
        return summary(
            self.folder,
            str(validation.get("verdict", "")),
            [str(reason) for reason in validation.get("reasons", ())],
            self.findings,
            {name: module.TITLE for name, module in chart_modules().items()},
            [name for name in declarations() if self.has(name)],
        )
