"""The entry point ``vllm.general_plugins``: vLLM calls it in each of its processes."""

from __future__ import annotations

import os


def register() -> None:
    """Start capture, if NVTXMOE_ENABLE or a settings file says so. Anything else costs nothing."""
    if os.environ.get("NVTXMOE_ENABLE") or os.environ.get("NVTXMOE_CONFIG"):
        from nvtxmoe.capture.startup.start import start  # noqa: PLC0415  only when asked for

        start()
