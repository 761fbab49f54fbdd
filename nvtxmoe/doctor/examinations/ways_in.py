"""How capture gets into vLLM's processes: the plugin, or sitecustomize on PYTHONPATH; and whether it is switched on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, Finding
from nvtxmoe.doctor.probe import ROOT, Installed

ORDER = 40

PLUGIN = "nvtxmoe"
ALLOWED = "VLLM_PLUGINS"
SITE = ROOT / "nvtxmoe" / "site"


def diagnose(context: Context) -> Iterator[Finding]:
    """The plugin and the path, together: one of them is enough."""
    yield from ways_in(context.installed, context.environ)


def ways_in(python: Installed, environ: Mapping[str, str]) -> Iterator[Finding]:
    """The plugin and the path, together: one of them is enough."""
    if python.vllm is None:
        return
    by_path = python.sitecustomize is not None and _is_ours(Path(python.sitecustomize))
    registered = PLUGIN in python.plugins
    allowed = environ.get(ALLOWED)
    # vLLM splits at commas and strips nothing
    admitted = registered and (allowed is None or PLUGIN in allowed.split(","))
    if admitted:
        yield Finding("plugin", OK, "vLLM loads nvtxmoe as a plugin")
    elif registered:
        only = f"lets in {allowed} only" if allowed else "is empty and lets in no plugin"
        yield Finding(
            "plugin",
            NOTE,
            f"{ALLOWED} {only}: vLLM will not load nvtxmoe as a plugin (`nvtxmoe profile` uses PYTHONPATH)",
            f"export {ALLOWED}={','.join(filter(None, (allowed, PLUGIN)))}, or unset it",
        )
    elif not by_path:
        yield Finding(
            "plugin",
            NOTE,
            f"{python.path} has no nvtxmoe plugin, and nvtxmoe is not on its PYTHONPATH: only `nvtxmoe profile`, which "
            "brings the hooks along, will record",
            f"For vLLM by itself: {python.path} -m pip install . in a clone of nvtxmoe, or export PYTHONPATH={SITE}",
        )
    if by_path:
        yield Finding("PYTHONPATH", OK, f"Python loads {python.sitecustomize} at its start")
    elif str(SITE) in environ.get("PYTHONPATH", "").split(":") and admitted:
        yield Finding("PYTHONPATH", OK, f"Python loads {python.sitecustomize} at its start, and vLLM nvtxmoe's plugin")
    elif str(SITE) in environ.get("PYTHONPATH", "").split(":"):
        yield Finding(
            "PYTHONPATH",
            NOTE,
            f"{python.sitecustomize} stands before nvtxmoe's on the path and hides it",
            f"Put {SITE} first in PYTHONPATH",
        )


def _is_ours(file: Path) -> bool:
    return file.parent.name == "site" and file.parent.parent.name == PLUGIN
