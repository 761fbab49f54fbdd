"""Specifications of charts: what Vega-Lite's schema allows, though the report does not check them."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import pytest
from altair.utils.schemapi import SchemaValidationError

from nvtxmoe_analysis.outputs.read import load
from nvtxmoe_analysis.report.build import placed
from nvtxmoe_analysis.report.chart import Drawing
from nvtxmoe_analysis.report.charts import chart_modules
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.specification import specification, unvalidated
from tests.support.report_results import Made, write


@pytest.mark.parametrize("name", chart_modules())
def test_charts_are_what_the_schema_allows(name: str, tmp_path: Path) -> None:
    """altair checks each part when it is made, and the whole when it is converted."""
    source = Source(load(write(tmp_path, Made().tables(), Made().documents())))
    drawing = chart_modules()[name].build(source)
    assert isinstance(drawing, Drawing), drawing
    checked = drawing.chart.to_dict(validate=True)
    assert placed(source, name, chart_modules()[name]).spec == {
        key: value for key, value in checked.items() if key not in ("config", "$schema")
    }


def test_checks_are_left_out_and_come_back() -> None:
    def wrong() -> alt.Axis:
        return alt.Axis(format=["no", "text"])  # type: ignore[arg-type]

    with unvalidated():
        wrong()
    with pytest.raises(SchemaValidationError, match="invalid"):
        wrong()
    with unvalidated():
        chart = alt.Chart(alt.NamedData(name="rows")).mark_bar().encode(x=alt.X("a:Q", axis=wrong()))
    assert specification(chart)["encoding"]["x"]["axis"] == {"format": ["no", "text"]}
