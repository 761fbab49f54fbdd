"""Which adapter of capture fits this vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.capture.vllm.source_check import SourceTree, unmet_needs
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Imported, Installed
from nvtxmoe.nsys_compatibility import version_numbers

ORDER = 30


def diagnose(context: Context) -> Iterator[Finding]:
    """The adapter that fits, by what was imported, else by the source."""
    yield from adapter(context.installed, context.imported)


def adapter(installation: Installed, imports: Imported) -> Iterator[Finding]:
    """Which adapter fits, by what was imported; else by the source, as far as that tells."""
    if installation.vllm is None:
        return
    if imports.adapter is not None:
        tried = f"adapter {imports.adapter} (checked against vLLM {imports.adapter_versions})"
        inside = _inside(imports.vllm or "", imports.adapter_versions or "")
        yield Finding(
            "adapter",
            OK if inside else NOTE,
            f"{tried} fits" + ("" if inside else f"; {imports.vllm} is not among those"),
            None if inside else "Compare a short run's counts before you trust them",
            {"lacking": imports.unmet},
        )
        return
    unmet, how = imports.unmet, "the installed vLLM"
    if not unmet:  # the import failed before an adapter could be chosen
        from nvtxmoe.capture.vllm.adapters import ADAPTERS  # noqa: PLC0415  only now

        tree = SourceTree.folder(Path(installation.vllm).parents[1])
        unmet, how = {adapter.NAME: unmet_needs(tree, adapter.NEEDS) for adapter in ADAPTERS}, "its source"
        fitting = [name for name, clauses in unmet.items() if not clauses]
        if fitting:
            yield Finding(
                "adapter", NOTE, f"adapter {fitting[0]} fits {how}; it could not be tried", None, {"lacking": unmet}
            )
            return
    clauses = "; ".join(f"{name} lacks {', '.join(missing)}" for name, missing in unmet.items())
    yield Finding(
        "adapter",
        PROBLEM,
        f"no adapter fits {how}: {clauses}",
        "Use a vLLM of docs/reference/supported-versions.md",
        {"lacking": unmet},
    )


def _inside(version: str, checked: str) -> bool:
    """Whether a version is in a span as ``0.24 to 0.33``."""
    first, _, last = checked.partition(" to ")
    try:
        return version_numbers(first)[:2] <= version_numbers(version)[:2] <= version_numbers(last or first)[:2]
    except ValueError:
        return False
