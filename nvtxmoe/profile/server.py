"""A server among the commands: its port, whether it is ready, and vLLM's option that lets its engine end by itself."""

from __future__ import annotations

import errno
import http.client
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.nsys_compatibility import version_numbers

DEFAULT_PORT = 8000
SHUTDOWN_OPTION = "--shutdown-timeout"
#: vLLM has had the option at least since then.
SHUTDOWN_SINCE = (0, 20)
_MODULE = "vllm.entrypoints.openai.api_server"
_COMMANDS = frozenset({"vllm", "vllm.entrypoints.cli.main"})
_EVERYWHERE = frozenset({"", "0.0.0.0", "::", "[::]"})  # noqa: S104  # nosec B104  addresses that mean all interfaces
_POLL_S = 0.5


@dataclass(frozen=True)
class Server:
    """Where a server listens.

    Attributes:
        listens: the host that it binds, empty for all interfaces.
        port: its port.
    """

    listens: str
    port: int

    @property
    def host(self) -> str:
        """The host to reach it at."""
        return "127.0.0.1" if self.listens in _EVERYWHERE else self.listens.strip("[]")

    @property
    def base_url(self) -> str:
        """The start of its addresses."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def is_vllm_server(command: Sequence[str]) -> bool:
    """Whether a command starts vLLM's OpenAI-compatible server."""
    following = [*command[1:], ""]
    return _MODULE in command or any(
        Path(word).name in _COMMANDS and after == "serve" for word, after in zip(command, following, strict=True)
    )


def option(command: Sequence[str], name: str) -> str | None:
    """The value that a command's words give an option, the last one where there are several."""
    value = None
    for word, after in zip(command, [*command[1:], None], strict=True):
        if word == name:
            value = after
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def address(command: Sequence[str], host: str | None = None, port: int | None = None) -> Server:
    """Where the server of a command listens, unless ``host`` and ``port`` say so.

    Raises:
        NvtxmoeError: the command's port is no number.
    """
    if host is None:
        host = option(command, "--host") or ""
    if port is None:
        text = option(command, "--port") or str(DEFAULT_PORT)
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
            raise NvtxmoeError(f"--port {text} of the command is no port", remedy="Give a number from 1 to 65535")
        port = int(text)
    return Server(host, port)


def check_port(server: Server) -> None:
    """Make sure that nothing listens there yet.

    Raises:
        NvtxmoeError: something does.
    """
    try:
        addresses = socket.getaddrinfo(
            server.listens or None, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return  # the server will say it better
    for family, kind, protocol, _, where in addresses:
        with suppress(OSError), closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(where)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _in_use(server) from error


def _in_use(server: Server) -> NvtxmoeError:
    return NvtxmoeError(
        f"port {server.port} is already in use, so the server could not start",
        remedy="End what listens there, or give the server another --port",
    )


def patient(command: Sequence[str], stop_timeout_s: float, vllm: str | None) -> list[str]:
    """The command of a vLLM server, with time for its engine to end by itself.

    By default vLLM's server kills its engine and workers outright when it is asked to end, and what nsys has not
    written by then is lost.

    Parameters:
        stop_timeout_s: how long the server will be waited for.
        vllm: its version, None where unknown.
    """
    known = True
    if vllm is not None:
        with suppress(ValueError):
            known = version_numbers(vllm) >= SHUTDOWN_SINCE
    if not known or not is_vllm_server(command) or option(command, SHUTDOWN_OPTION) is not None:
        return list(command)
    return [*command, SHUTDOWN_OPTION, str(max(1, int(stop_timeout_s * 0.75)))]


def is_ready(server: Server) -> bool:
    """Whether the server answers: /health, or /v1/models where there is no /health."""
    status = _status(server, "/health")
    return status == 200 or (status in {404, 405, 501} and _status(server, "/v1/models") == 200)


def _status(server: Server, path: str) -> int | None:
    # http.client obeys no proxy variables.
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=5)
        with closing(connection):
            connection.request("GET", path)
            return connection.getresponse().status
    return None


def wait_until_ready(server: Server, ended: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until the server is ready.

    Parameters:
        ended: whether the server's process has ended.
        timeout_s: how long to wait.

    Returns:
        False when it has ended before it was ready.

    Raises:
        NvtxmoeError: it is not ready in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if ended():
            return False
        if is_ready(server):
            return True
        if time.monotonic() >= deadline:
            raise NvtxmoeError(
                f"the server was not ready at {server.base_url} within {timeout_s:g} s",
                remedy="Give it longer with --ready-timeout, or say where it listens with --host and --port",
            )
        time.sleep(_POLL_S)
