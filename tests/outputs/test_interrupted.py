"""An analysis that ends while findings are made leaves all of the earlier results, and nothing of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvtxmoe_analysis import analyze as analyze_module
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.facts.selection import Selection
from tests.support.cli import everything


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError])
def test_earlier_results_stay(
    error: type[BaseException], golden_1gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze([golden_1gpu], tmp_path)
    before = everything(tmp_path)
    assert "findings.json" in before

    def interrupted(_: object) -> None:
        raise error

    monkeypatch.setattr(analyze_module, "advise", interrupted)
    with pytest.raises(error):
        analyze([golden_1gpu], tmp_path, selection=Selection(first_step=3, last_step=9))
    assert everything(tmp_path) == before
