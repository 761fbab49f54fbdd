"""Checks are found by being in their folder."""

from __future__ import annotations

from nvtxmoe_analysis.checks.registry import check_modules
from tests.support.paths import ROOT

#: Modules of the folder that are no checks.
TOOLS = {"__init__", "check", "registry"}


def test_every_module_but_the_tools_is_a_check() -> None:
    files = {file.stem for file in (ROOT / "analysis" / "nvtxmoe_analysis" / "checks").glob("*.py")}
    assert set(check_modules()) == files - TOOLS


def test_every_check_has_a_place_of_its_own_and_tells_whether_it_needs_an_export() -> None:
    modules = check_modules().values()
    orders = [module.ORDER for module in modules]
    assert orders == sorted(set(orders))
    assert all(isinstance(module.EXPORTS_ONLY, bool) for module in modules)
