"""PyTorch: there, importable, with CUDA."""

from __future__ import annotations

from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Imported, Installed

ORDER = 20


def diagnose(context: Context) -> Iterator[Finding]:
    """PyTorch and its CUDA."""
    yield from torch(context.installed, context.imported)


def torch(found: Installed, said: Imported) -> Iterator[Finding]:
    """PyTorch and its CUDA."""
    if "torch" not in found.versions and said.torch is None:
        if found.vllm is not None:
            yield Finding("PyTorch", PROBLEM, f"{found.path} has no PyTorch", "Install what vLLM needs")
        return
    if said.torch is None:
        why = said.torch_trouble or said.trouble or "it said nothing"
        yield Finding("PyTorch", PROBLEM, f"{found.versions['torch']} cannot be imported: {why}", "Repair it first")
        return
    cuda = f"CUDA {said.torch_cuda}, sees {said.cuda_devices} devices" if said.torch_cuda else "without CUDA"
    yield Finding("PyTorch", OK, f"{said.torch}, {cuda}")
