"""Packages invented for a test: put on a Python's path, they are found, imported and asked for their versions."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from nvtxmoe.capture.vllm.adapters import ADAPTERS

TORCH = """
__version__ = "2.13.0"
class version:
    cuda = "13.0"
class cuda:
    @staticmethod
    def device_count():
        return 2
"""


def distribution(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """What ``importlib.metadata`` reads."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if entry_points:
        (info / "entry_points.txt").write_text(entry_points)


def package(folder: Path, name: str, version: str, source: str, dist: str | None = None) -> None:
    """A package of one module, with its distribution."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    distribution(folder, dist or name, version)


def vllm(folder: Path, version: str, dist: str = "vllm", *, shape: str | None = None, source: str = "") -> None:
    """A vLLM with what the adapter ``shape`` needs, and nothing else; a torch beside it.

    Parameters:
        source: runs when it is imported.
    """
    package(folder, "torch", "2.13.0", TORCH)
    package(folder, "vllm", version, f"__version__ = {version!r}\n{source}\n", dist)
    bodies: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    bodies["vllm.v1.worker.gpu_worker"][""] = []
    for need in next((one.NEEDS for one in ADAPTERS if shape == one.NAME), ()):
        owner, _, name = need.qualname.rpartition(".")
        bodies[need.module][owner].append(f"def {name}({', '.join(('self', *need.parameters))}): ...")
    for module, owners in bodies.items():
        lines = [f"class {owner}:\n    " + "\n    ".join(members) for owner, members in owners.items() if owner]
        lines += owners.get("", [])
        path = folder.joinpath(*module.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text("\n".join(lines) + "\n")


def environment(*folders: Path, **more: str) -> dict[str, str]:
    """The environment with these folders first on the path, and no variables that capture reads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NVTXMOE_", "VLLM_")) and k != "PYTHONPATH"}
    return kept | {"PYTHONPATH": os.pathsep.join(map(str, folders))} | more


def executable(path: Path, text: str) -> Path:
    """A shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
