"""One module per shape of vLLM, found by being here. The right one is chosen by what it needs, not by a version number.

An adapter has NAME, VERSIONS (as checked), ORDER (low numbers are tried first), NEEDS, and ``install(capture)``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from nvtxmoe.capture.vllm.requirements import missing

#: Every adapter, in the order in which they are tried.
ADAPTERS: tuple[ModuleType, ...] = tuple(
    sorted(
        (import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)),
        key=lambda adapter: (adapter.ORDER, adapter.NAME),
    )
)


def choose() -> tuple[ModuleType | None, dict[str, list[str]]]:
    """The adapter for the installed vLLM, and what each of the others lacks. This imports vLLM."""
    missing_clauses = {adapter.NAME: missing(adapter.NEEDS) for adapter in ADAPTERS}
    fitting = next((adapter for adapter in ADAPTERS if not missing_clauses[adapter.NAME]), None)
    return fitting, {name: clauses for name, clauses in missing_clauses.items() if clauses}
