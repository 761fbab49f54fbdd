"""Kernels and quantisation methods of vLLM that hide routing from capture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.capture.vllm.source_check import Definition, SourceTree
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, Finding
from nvtxmoe.doctor.probe import Installed
from nvtxmoe.errors import NvtxmoeError

ORDER = 100

FUSED = "vllm.model_executor.layers.fused_moe"
#: vLLM's base class of kernels that route inside, and the modules in which a quantisation method may say so itself.
MONOLITHIC = (f"{FUSED}.modular_kernel", "FusedMoEExpertsMonolithic")
METHODS = "vllm.model_executor.layers.quantization"


def diagnose(context: Context) -> Iterator[Finding]:
    """Kernels and quantisation methods that route inside, read from vLLM's source."""
    yield from hidden(context.installed)


def hidden(installation: Installed) -> Iterator[Finding]:
    """Kernels and quantisation methods that route inside, read from vLLM's source."""
    if installation.vllm is None:
        return
    try:
        tree = SourceTree.folder(Path(installation.vllm).parents[1])
    except NvtxmoeError:
        return
    kernels = [_name(definition) for definition in tree.subclasses(*MONOLITHIC)]
    methods = sorted(_monolithic_methods(tree))
    names = [*kernels, *methods]
    if names:
        yield Finding(
            "hidden routing",
            NOTE,
            "layers whose experts run in one of these route inside it, and get counts only if the kernel writes its "
            "ids or its rule is known: " + ", ".join(names),
            "Look for `no expert counts are recorded` in the run's output: it names the layers",
            {"kernels": kernels, "methods": methods},
        )


def _name(definition: Definition) -> str:
    return str(getattr(definition.node, "name", definition.module))


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
