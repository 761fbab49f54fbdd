"""GPUs and their driver."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, Finding
from nvtxmoe.nsys_compatibility import NSYS_FOR_NEW_NVTX, version_numbers

ORDER = 70

#: The CUDA of a driver on which nsys 2023.4 loses most kernels.
CUDA_TOO_NEW_FOR_2023 = 13


def diagnose(context: Context) -> Iterator[Finding]:
    """NVIDIA GPUs, and whether nsys fits their driver."""
    yield from gpu(context.under_nsys.version)


def gpu(nsys_version: str | None) -> Iterator[Finding]:
    """NVIDIA GPUs and their driver, asked of nvidia-smi: no context is made on a GPU that serves."""
    text = _nvidia_smi()
    cuda = re.search(r"CUDA Version:\s*(\d+)\.(\d+)", text)
    names = device_names()
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


def device_names() -> list[str]:
    """The names of this machine's NVIDIA GPUs, asked of nvidia-smi."""
    return re.findall(r"^GPU \d+: (.+?) \(UUID", _nvidia_smi("-L"), re.MULTILINE)


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
