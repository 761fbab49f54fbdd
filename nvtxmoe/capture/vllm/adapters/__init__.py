"""One module a shape of vLLM. The right one is found by what it needs, not by a version number alone."""

from __future__ import annotations

from types import ModuleType

from nvtxmoe.capture.vllm.adapters import layer_owns_runner, runner_is_layer
from nvtxmoe.capture.vllm.requirements import missing

#: Each has NAME, VERSIONS (as checked), NEEDS, and ``install(capture)``.
ADAPTERS: tuple[ModuleType, ...] = (runner_is_layer, layer_owns_runner)


def choose() -> tuple[ModuleType | None, dict[str, list[str]]]:
    """The adapter for the installed vLLM, and what each of the others lacks. This imports vLLM."""
    lacking = {adapter.NAME: missing(adapter.NEEDS) for adapter in ADAPTERS}
    fitting = next((adapter for adapter in ADAPTERS if not lacking[adapter.NAME]), None)
    return fitting, {name: clauses for name, clauses in lacking.items() if clauses}
