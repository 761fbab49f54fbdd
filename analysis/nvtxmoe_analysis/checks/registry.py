"""The checks: a module each, found by being in this folder.

A check is a module with a function ``check``; see ``CheckModule`` for what else it has. Modules without that function
are tools of the others.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe_analysis import checks
from nvtxmoe_analysis.checks.check import FAIL, Check, not_applicable
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

COMPLETE, INCOMPLETE = "complete", "incomplete"


class CheckModule(Protocol):
    """What a module of a check has.

    Attributes:
        ORDER: its place in the validation file and on the terminal; low numbers come first.
        EXPORTS_ONLY: whether it looks at what only an export of nsys holds, so that it does not apply to direct mode.
    """

    ORDER: int
    EXPORTS_ONLY: bool

    def check(self, results: RunMetrics, /) -> Check:
        """Look at the whole capture, whatever was selected."""


@cache
def check_modules() -> Mapping[str, CheckModule]:
    """Every check by the name of its module, in the order in which people read them."""
    modules = {
        info.name: import_module(f"{checks.__name__}.{info.name}") for info in pkgutil.iter_modules(checks.__path__)
    }
    check_by_name = {name: cast(CheckModule, module) for name, module in modules.items() if hasattr(module, "check")}
    return dict(sorted(check_by_name.items(), key=lambda item: (item[1].ORDER, item[0])))


def run_checks(results: RunMetrics) -> list[Check]:
    """Run every check on the whole capture, whatever was selected."""

    def run(name: str) -> Check:
        module = check_modules()[name]
        if results.direct and module.EXPORTS_ONLY:
            return not_applicable(name, "Direct mode records no ranges and no GPU work.")
        return module.check(results)

    return list(ordered_map(run, check_modules()))


def verdict(outcomes: Sequence[Check]) -> str:
    """``complete``, or ``incomplete`` when any check failed."""
    return INCOMPLETE if any(check.status == FAIL for check in outcomes) else COMPLETE
