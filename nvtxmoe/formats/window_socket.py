"""The Unix sockets that open and close windows of a running server: where they are, who may use them, the messages.

A session's folder has ``control/``, mode 0700, with a socket per recorded process, mode 0600. A message is one line: a
JSON object. A client sends a request and gets one answer, which has ``error`` if the request was refused:

    status                    -> what the process is, and its window
    start, window             -> recording has begun; then keep, first: the window is kept, else it is undone
    stop                      -> no further step begins; then conclude, first, last: the files are closed

``first`` and ``last`` are the steps that all ranks have.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvtxmoe.errors import NvtxmoeError

#: Folders inside a session's folder: the sockets, and the windows by number, each laid out as a session.
CONTROL, WINDOWS = "control", "windows"
SUFFIX = ".sock"
#: Bytes of a message at most.
MOST_BYTES = 1 << 16
_UCRED = struct.Struct("3i")


class Control:
    """The folder of sockets, held open: its owner and mode were checked, and nobody can put another one in its place.

    Parameters:
        session: the session's folder.
        create: whether the folder is made if it is not there.

    Raises:
        OSError: it can't be opened or made.
        NvtxmoeError: it belongs to another user, or others may write to it.
    """

    def __init__(self, session: Path, *, create: bool = False) -> None:
        self.path = session / CONTROL
        if create:
            session.mkdir(mode=0o755, parents=True, exist_ok=True)  # nsys starts programs with a mask of 0
            self.path.mkdir(mode=0o700, exist_ok=True)
        self._fd: int | None = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        trusted = (os.geteuid(),) if create or os.geteuid() else (0, status.st_uid)  # root may use everybody's
        if status.st_uid not in trusted:
            self.close()
            raise NvtxmoeError(
                f"the folder belongs to user {status.st_uid}", where=self.path, remedy="Run as the server's user"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            self.close()
            raise NvtxmoeError("other users may enter the folder", where=self.path, remedy="Set its mode to 0700")

    def address(self, name: str) -> str:
        """Address of a socket in the folder: short, however long the folder's path is (an address has 107 bytes)."""
        return f"/proc/self/fd/{self._fd}/{name}"

    def names(self) -> list[str]:
        """Names of the sockets in it, sorted."""
        assert self._fd is not None
        return sorted(name for name in os.listdir(self._fd) if name.endswith(SUFFIX))  # noqa: PTH208  an open folder

    def close(self) -> None:
        """Close the folder; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def peer_is_trusted(connection: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user or to root."""
    size = _UCRED.size
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.geteuid(), 0) or os.geteuid() == 0


def send(connection: socket.socket, message: Mapping[str, Any], seconds: float) -> None:
    """Send a message.

    Raises:
        OSError: the other end is gone, or does not read within ``seconds``.
    """
    connection.settimeout(seconds)
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket, seconds: float) -> dict[str, Any]:
    """Receive the next message. Nothing may follow it before an answer is sent.

    Raises:
        OSError: it does not come within ``seconds``.
        ValueError: it is no JSON object of one line, is too long, or the other end is gone.
    """
    until, data = time.monotonic() + seconds, b""
    while not data.endswith(b"\n"):
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no message within {seconds:g} s")
        connection.settimeout(left_s)
        more = connection.recv(MOST_BYTES)
        data += more
        if not more or len(data) > MOST_BYTES:
            raise ValueError("the other end has closed the connection" if not more else "the message is too long")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("the message is no JSON") from error
    if not isinstance(message, dict):
        raise ValueError("the message is no JSON object")
    return message
