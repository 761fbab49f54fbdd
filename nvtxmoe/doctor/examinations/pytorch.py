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


def torch(installation: Installed, imports: Imported) -> Iterator[Finding]:
    """PyTorch and its CUDA."""
    if "torch" not in installation.versions and imports.torch is None:
        if installation.vllm is not None:
            yield Finding("PyTorch", PROBLEM, f"{installation.path} has no PyTorch", "Install what vLLM needs")
        return
    if imports.torch is None:
        why = imports.torch_trouble or imports.trouble or "it said nothing"
        yield Finding(
            "PyTorch", PROBLEM, f"{installation.versions['torch']} cannot be imported: {why}", "Repair it first"
        )
        return
    cuda = f"CUDA {imports.torch_cuda}, sees {imports.cuda_devices} devices" if imports.torch_cuda else "without CUDA"
    yield Finding("PyTorch", OK, f"{imports.torch}, {cuda}")
