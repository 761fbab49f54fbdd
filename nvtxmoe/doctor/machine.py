"""What the machine gives: GPUs, and room on the disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.probe import Imported, Installed
from nvtxmoe.doctor.settings import existing_parent
from nvtxmoe.nsys_compatibility import NSYS_FOR_NEW_NVTX, version_numbers
from nvtxmoe.sizing.estimate import Estimate

#: The CUDA of a driver on which nsys 2023.4 loses most kernels.
CUDA_TOO_NEW_FOR_2023 = 13
#: Less room than this is said even without an estimate.
LITTLE_BYTES = 1 << 30


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


def gpu(nsys_version: str | None) -> Iterator[Finding]:
    """NVIDIA GPUs and their driver, asked of nvidia-smi: no context is made on a GPU that serves."""
    text = _nvidia_smi()
    cuda = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", text)
    names = re.findall(r"^GPU \d+: (.+?) \(UUID", _nvidia_smi("-L"), re.MULTILINE)
    if not names:
        yield Finding("GPU", NOTE, "no NVIDIA GPU is seen here: routing can be recorded, GPU times cannot")
        return
    shown = f", driver for CUDA {cuda[1]}.{cuda[2]}" if cuda else ""
    yield Finding("GPU", OK, f"{len(names)} x {names[0]}{shown}", None, {"devices": names})
    old = nsys_version is not None and version_numbers(nsys_version) < NSYS_FOR_NEW_NVTX
    if cuda and int(cuda[1]) >= CUDA_TOO_NEW_FOR_2023 and old:
        yield Finding(
            "GPU",
            NOTE,
            f"nsys {nsys_version} loses most kernels with a driver for CUDA {cuda[1]}",
            "Use an nsys of 2025 for GPU times",
        )


def _nvidia_smi(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def disk(folder: Path, needed: bool, wanted_bytes: int) -> Iterator[Finding]:
    """Whether the output folder can be written, and has room.

    Parameters:
        folder: it need not be there yet.
        needed: whether a capture is impossible without it.
        wanted_bytes: of the estimate; 0 where there is none.
    """
    there = existing_parent(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            PROBLEM if needed else NOTE,
            f"{folder} cannot be written ({there} is not a folder that may be written to)",
            "Set NVTXMOE_OUTPUT_DIR to one that may",
        )
        return
    free = shutil.disk_usage(there).free
    details = {"free_bytes": free, "wanted_bytes": wanted_bytes}
    if free < max(wanted_bytes, LITTLE_BYTES):
        wants = f", the estimate wants {human(wanted_bytes)}" if wanted_bytes else ""
        yield Finding(
            "disk", NOTE, f"{human(free)} free in {folder}{wants}", "Make room, or capture fewer steps", details
        )
    else:
        yield Finding("disk", OK, f"{human(free)} free in {folder}", None, details)


def human(size_bytes: float) -> str:
    """Bytes for people: ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "bytes" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} TB"


def size(estimated: Estimate, encoding: str, model: Path) -> Finding:
    """The estimate in words."""
    shape = estimated.shape
    nsys_bytes, at_least = estimated.disk(("nsys",), encoding)
    direct_bytes, _ = estimated.disk(("moe",), encoding)
    steps = estimated.steps
    floor = "at least " if at_least else ""
    what = (
        f"{model.name or model}: {shape.layers} MoE layers, {shape.experts} experts, top-{shape.top_k}. "
        f"{steps:,} eager steps of {estimated.tokens:,} tokens a rank: {floor}{human(nsys_bytes)} under nsys "
        f"({human(nsys_bytes / steps)} a step), {human(direct_bytes)} directly ({human(direct_bytes / steps)} a step)"
    )
    return Finding("estimate", OK, what, None, estimated.as_dict())
