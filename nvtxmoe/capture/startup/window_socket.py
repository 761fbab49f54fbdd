"""The socket of a recorded process on which ``nvtxmoe window`` opens and closes windows, and the thread that answers.

Serving never waits for it. Whatever a client does or leaves undone costs this thread some seconds at most.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from multiprocessing import util
from pathlib import Path
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.window_control import WindowControl
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats.window_socket import SUFFIX, Control, peer_is_trusted, receive, send

#: Seconds that a client may take for a message, and to take an answer.
PATIENCE_S = 5.0
#: Seconds that a client has between the two messages of a start or an end, in which it asks all other ranks.
BETWEEN_S = 30.0
#: Seconds after which it listens again where that has failed.
RETRY_S = 1.0
#: Clients that may wait for their turn.
MOST_WAITING = 16


class WindowSocket:
    """Listens in a session's folder until the process ends.

    Raises:
        OSError: the socket can't be made, for one because there is one of that name.
        NvtxmoeError: the folder of sockets is another user's.
    """

    def __init__(self, session: Path, rank: int, control: WindowControl) -> None:
        self._control = control
        self._folder = Control(session, create=True)
        self.path = self._folder.path / f"rank{rank}-{os.getpid()}{SUFFIX}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(self._folder.address(self.path.name))
            Path(self._folder.address(self.path.name)).chmod(0o600)  # nobody enters the folder meanwhile
            self._socket.listen(MOST_WAITING)
        except OSError:
            self._socket.close()
            self._folder.close()
            raise
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._socket.close)
        atexit.register(self.remove)
        util.Finalize(None, self.remove, exitpriority=0)  # children of multiprocessing leave without atexit
        threading.Thread(target=self._serve, name="nvtxmoe-window", daemon=True).start()

    def remove(self) -> None:
        """Take the socket's name away: nobody can connect any more."""
        if os.getpid() == self._pid:
            self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        warned = False
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:  # out of file descriptors, for one
                if not warned:
                    logger().warning("%s: no client is heard: %s", self.path, error)
                warned = True
                time.sleep(RETRY_S)
                continue
            with connection:
                try:
                    if peer_is_trusted(connection):
                        self._answer(connection)
                except Exception as error:  # serving is sacred
                    if not warned:
                        logger().warning("a client of %s failed: %s", self.path, error)
                    warned = True

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = receive(connection, PATIENCE_S)
            self._do(connection, request)
        except (NvtxmoeError, OSError, ValueError, TypeError, KeyError) as error:
            with contextlib.suppress(OSError):
                send(connection, {"error": str(error)}, PATIENCE_S)
            if not isinstance(error, NvtxmoeError):
                raise

    def _do(self, connection: socket.socket, request: Mapping[str, Any]) -> None:
        action = request.get("do")
        if action == "status":
            send(connection, self._control.status(), PATIENCE_S)
        elif action == "start":
            self._start(connection, _number(request, "window"))
        elif action == "stop":
            self._stop(connection)
        else:
            raise NvtxmoeError(f"{action!r} is none of status, start, stop", remedy="Use nvtxmoe of the same version")

    def _start(self, connection: socket.socket, number: int) -> None:
        response = self._control.start(number)
        try:
            send(connection, response, PATIENCE_S)
            first = _number(_expected(connection, "keep"), "first")
        except BaseException:
            self._control.undo()
            raise
        send(connection, self._control.keep(first), PATIENCE_S)

    def _stop(self, connection: socket.socket) -> None:
        response = self._control.stop()
        first, last = response["first"], response["last"]
        try:
            send(connection, response, PATIENCE_S)
            agreed = _expected(connection, "conclude")
            first, last = _number(agreed, "first"), _number(agreed, "last", least=-1)
        finally:
            concluded = self._control.conclude(first, last)
        send(connection, concluded, PATIENCE_S)


def _expected(connection: socket.socket, action: str) -> dict[str, Any]:
    request = receive(connection, BETWEEN_S)
    if request.get("do") != action:
        raise ValueError(f"{action} was expected, not {request.get('do')!r}")
    return request


def _number(message: Mapping[str, Any], key: str, least: int = 0) -> int:
    value = message.get(key)
    if type(value) is not int or not least <= value < 1 << 62:
        raise ValueError(f"{key} is {value!r}, not a number from {least}")
    return value
