"""What a profile run will do, decided before anything is started."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nvtxmoe.capture.startup.settings import load
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.nsys_compatibility import payload_encoding
from nvtxmoe.profile import interpreter, nsys_command
from nvtxmoe.profile.capture_size import LoadSize, Size, capture_size
from nvtxmoe.profile.environment import Environment, capture_environment
from nvtxmoe.profile.secrets import without_secrets
from nvtxmoe.profile.server import SHUTDOWN_OPTION, Server, address, is_vllm_server, option, patient

NSYS, MOE, BOTH = "nsys", "moe", "both"
MODES = (NSYS, MOE, BOTH)
SESSION = "session"

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What the user asks for; see the options of ``nvtxmoe profile``."""

    command: Sequence[str]
    mode: str = NSYS
    folder: Path | None = None
    nsys: Path | None = None
    python: Path | None = None
    trace: str = nsys_command.DEFAULT_TRACE
    nsys_options: Sequence[str] = ()
    settings: Mapping[str, str | None] = field(default_factory=dict)
    load: LoadSize | None = None
    host: str | None = None
    port: int | None = None
    stop_timeout_s: float = 120.0


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Attributes:
        command: the user's command, with vLLM's shutdown option where that was added.
        argv: the whole command line.
        environment: what it runs with.
        folder: for everything that comes of it.
        nsys: the nsys that it runs under, None in mode moe.
        session: nsys's name of the run.
        direct: folder of direct mode, None in mode nsys.
        server: where the command listens, None when it is no server.
        python: the command's Python.
        size: the estimate of its files, None where the model is not known.
        notes: what the user should know.
    """

    command: list[str]
    argv: list[str]
    environment: Environment
    folder: Path
    nsys: nsys_command.Nsys | None
    session: str
    direct: Path | None
    server: Server | None
    python: interpreter.Interpreter | None
    size: Size | None
    notes: list[str]

    @property
    def log(self) -> Path:
        """The file that gets the command's output."""
        return self.folder / ("server.log" if self.server else "command.log")

    def shown(self) -> str:
        """The command line with its environment, as a shell takes it."""
        unset = "".join(f"-u {name} " for name in self.environment.unset if name in os.environ)
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.environment.set.items())]
        return " \\\n  ".join([f"env {unset}{variables[0]}", *variables[1:], shlex.join(without_secrets(self.argv))])


def make_plan(request: Request, *, tolerant: bool = False) -> Plan:
    """Decide what to run.

    Parameters:
        tolerant: only to show it: what is missing here becomes a note.

    Raises:
        NvtxmoeError: it can't be run so.
    """
    if request.command[0].startswith("-"):
        raise NvtxmoeError(f"no command: {request.command[0]}", remedy="Put -- and the command after the options")
    notes: list[str] = []
    python = _attempt(lambda: interpreter.examine(request.command, request.python), tolerant, notes)
    if python and not python.certain:
        notes.append(f"the command does not say which Python it runs; {python.path} is asked (--python names another)")
    nsys, payload = None, None
    if request.mode != MOE:
        nsys = _attempt(lambda: nsys_command.examine(request.nsys), tolerant, notes)
        if nsys and python:
            payload = _attempt(lambda: _payload(nsys, python), tolerant, notes)
    server = None
    if request.load is not None or is_vllm_server(request.command):
        server = address(request.command, request.host, request.port)
    command = patient(request.command, request.stop_timeout_s, python.vllm if python else None)
    if command != list(request.command):
        notes.append(
            f"{' '.join(command[-2:])} is added: without it vLLM kills its engine, and the trace's end is lost"
        )
    elif option(command, SHUTDOWN_OPTION) == "0":
        notes.append(f"{SHUTDOWN_OPTION} 0 makes vLLM kill its engine, and the trace's end is lost: leave it out")
    folder = (request.folder or Path(time.strftime("profiling_results_%Y%m%d_%H%M%S"))).absolute()
    direct = {NSYS: None, MOE: folder, BOTH: folder / SESSION}[request.mode]
    session = f"nvtxmoe-{os.getpid()}"
    argv = command
    if request.mode != MOE:
        argv = nsys_command.profile_command(
            nsys.path if nsys else Path("nsys"), command, folder,
            session=session, trace=request.trace, more=request.nsys_options,
        )  # fmt: skip
    environment = capture_environment(
        request.mode, request.settings, payload=payload, session=direct, stop_timeout_s=request.stop_timeout_s
    )
    settings = load(environment.applied(os.environ))
    size = capture_size(command, settings, mode=request.mode, payload=payload, load=request.load)
    if size:
        notes.append(size.line)
    return Plan(command, argv, environment, folder, nsys, session, direct, server, python, size, notes)


def _attempt(decide: Callable[[], T], tolerant: bool, notes: list[str]) -> T | None:
    try:
        return decide()
    except NvtxmoeError as error:
        if not tolerant:
            raise
        notes.append(str(error))
        return None


def _payload(nsys: nsys_command.Nsys, python: interpreter.Interpreter) -> str:
    """The encoding of payloads that this nsys and the command's nvtx carry.

    Raises:
        NvtxmoeError: this nsys records nothing of what nvtx emits.
    """
    nvtx = nsys_command.check_nvtx(nsys, python.nvtx, python.path)
    return payload_encoding(load(os.environ).payload, nvtx, nsys.knows_blobs)[0]
