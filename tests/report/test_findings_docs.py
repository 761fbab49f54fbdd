"""docs/explanation/findings.md names every finding as the code does; ``--update-golden`` writes the table."""

from __future__ import annotations

import re
from pathlib import Path

from nvtxmoe_analysis.report.finding import DOCUMENTED
from nvtxmoe_analysis.report.findings import finding_modules
from tests.support.paths import ROOT

PAGE = ROOT / DOCUMENTED
TABLE = re.compile(r"<!-- findings -->\n(.*?)<!-- /findings -->", re.DOTALL)


def generated() -> str:
    """Every finding under a heading of its own, so that its link leads there."""
    return "".join(f"### {module.ID}\n{module.MEANING}\n\n" for module in finding_modules().values())


def test_the_page_says_what_the_modules_say(update_golden: bool) -> None:
    text = PAGE.read_text()
    if update_golden:
        text = TABLE.sub(lambda _: f"<!-- findings -->\n{generated()}<!-- /findings -->", text)
        PAGE.write_text(text)
    found = TABLE.search(text)
    assert found is not None and found[1] == generated()


def test_ids_are_names_of_their_files() -> None:
    assert {module.ID.replace("-", "_"): module.ID for module in finding_modules().values()} == {
        name: module.ID for name, module in finding_modules().items()
    }


def test_settings_that_are_advised_are_vllms_or_ours() -> None:
    """A misspelt option in advice would send people the wrong way."""
    text = "".join((Path(str(ROOT)) / file).read_text() for file in _files())
    assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) == {
        "--all", "--all2all-backend", "--async-scheduling", "--compilation-config", "--cuda-graph-trace",
        "--cudagraph-capture-sizes", "--enable-dbo", "--enable-eplb", "--enforce-eager", "--format", "--link-gbs",
        "--max-num-seqs", "--model", "--num-requests", "--perfetto", "--query-gpu", "--report",
        "--shutdown-timeout", "--tune",
    }  # fmt: skip


def _files() -> list[Path]:
    report = ROOT / "analysis" / "nvtxmoe_analysis" / "report"
    return [report / "commands.py", *sorted((report / "findings").glob("*.py"))]
