"""The pages on live metrics say what the code does. ``--update-golden`` rewrites its table of series."""

from __future__ import annotations

import re

from nvtxmoe.capture.live.samples import Options
from nvtxmoe.capture.live.series import SERIES, Shape, most_series
from nvtxmoe.capture.startup.settings import FIELDS, PREFIX, Settings
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "live-series.md"
LARGE = Shape(61, 256, 8, 8)


def table() -> str:
    lines = ["| series | kind | labels | meaning | bound | of a large model |", "| --- | --- | --- | --- | --- | --- |"]
    for one in SERIES:
        labels = ", ".join(one.labels)
        lines.append(f"| `{one.full_name}` | {one.kind} | {labels} | {one.what} | {one.bound} | {one.most(LARGE)} |")
    lines.append(f"| all | | | | | at most {most_series(LARGE)} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_series(update_golden: bool) -> None:
    pattern = r"(<!-- series -->\n).*?(<!-- /series -->)"
    if update_golden:
        PAGE.write_text(re.sub(pattern, lambda m: m[1] + table() + m[2], PAGE.read_text(), flags=re.DOTALL))
    found = re.search(pattern.replace(".*?", "(.*?)"), PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert found[2] == table()


def test_numbers_of_the_pages() -> None:
    text = PAGE.read_text() + (ROOT / "docs" / "how-to" / "live-metrics.md").read_text()
    assert most_series(LARGE) < 1000
    detail = Shape(61, 256, 8, 8, Options(experts=True))
    assert f"61 layers x 256 experts: {most_series(detail):,}" in text
    assert f":{Settings().metrics_port}/metrics" in text
    named = {PREFIX + name.upper() for name in FIELDS if name.startswith("metrics")}
    assert named <= set(re.findall(r"NVTXMOE_\w+", text))
