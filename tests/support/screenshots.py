"""The pictures of the report in the README, made anew from the demo's capture.

python -m tests.support.screenshots
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from nvtxmoe.commands.demo import CAPTURE
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.report import report
from tests.support.chromium import Browser, opened
from tests.support.paths import ROOT

IMAGES = ROOT / "docs" / "images"
WIDTH = 1140
#: File -> colour scheme, first and last element of the page that it shows.
SHOTS: Mapping[str, tuple[str, str, str]] = {
    "report-findings.png": ("light", "body", ".findings > li:nth-child(2)"),
    "report-time.png": ("dark", "#chart-step_share", "#chart-layer_phases"),
    "report-why.png": ("light", "#chart-time_and_feature", "#chart-time_and_feature"),
    "report-routing.png": ("dark", "#chart-expert_heatmap", "#chart-imbalance_time"),
}
MARGIN = 8


def take(browser: Browser, file: Path, first: str, last: str) -> None:
    """A picture from the top of one element to the bottom of another, as wide as the page."""
    where = "const box = s => document.querySelector(s).getBoundingClientRect(); return "
    top = float(browser.run(f"{where} box(arguments[0]).top + scrollY", first))
    bottom = float(browser.run(f"{where} box(arguments[0]).bottom + scrollY", last))
    top = max(0.0, top - MARGIN)
    browser.screenshot(file, WIDTH, round(bottom - top + MARGIN), y=round(top))


def main() -> None:
    """Analyse the demo's capture, open its report, take the pictures.

    It runs where the clone's paths are: the page shows commands as somebody in the clone's root would type them.
    """
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, opened(width=WIDTH, height=900) as browser:
        os.chdir(folder)
        Path("nvtxmoe").symlink_to(ROOT / "nvtxmoe")
        analyze([CAPTURE.relative_to(ROOT)], Path("nvtxmoe-demo"))
        page = report(Path("nvtxmoe-demo")).page.resolve()
        for name, (scheme, first, last) in SHOTS.items():
            browser.scheme(scheme)
            browser.open(page)
            take(browser, IMAGES / name, first, last)


if __name__ == "__main__":
    main()
