"""What ``nvtxmoe doctor`` looks at: a module per thing, found by being here.

An examination is a module with ``ORDER`` (its place in what is shown, low numbers first) and ``diagnose(context)``,
which yields findings: none where there is nothing to look at.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import Finding


class Examination(Protocol):
    """What a module of this folder has."""

    ORDER: int

    def diagnose(self, context: Context, /) -> Iterable[Finding]:
        """Look at one thing and tell what was found."""


def examinations() -> Mapping[str, Examination]:
    """Every examination by name, in the order in which their findings are shown."""
    modules = {
        info.name: cast(Examination, import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    }
    return dict(sorted(modules.items(), key=lambda item: (item[1].ORDER, item[0])))
