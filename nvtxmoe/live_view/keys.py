"""Read keys from a terminal as they are pressed, and give the terminal back as it was."""

from __future__ import annotations

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SEQUENCES = {
    "\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1bOH": "home", "\x1b[1~": "home", "\x1b[F": "end", "\x1bOF": "end", "\x1b[4~": "end",
}  # fmt: skip
_LONGEST = 8


class KeyReader:
    """Turns what a terminal sends into names of keys. A sequence may arrive in parts."""

    def __init__(self) -> None:
        self._left = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the keys in the bytes: a character, or a name such as ``up``."""
        text, keys = self._left + data.decode("utf-8", "ignore"), []
        self._left = ""
        while text:
            if text[0] != "\x1b":
                keys.append(text[0])
                text = text[1:]
                continue
            length = _length(text)
            if length is None:
                self._left = text if len(text) < _LONGEST else ""
                break
            if text[:length] in _SEQUENCES:
                keys.append(_SEQUENCES[text[:length]])
            text = text[length:]
        return keys


def _length(text: str) -> int | None:
    """Return the length of the sequence at the beginning of a text; None if it goes on."""
    if len(text) == 1:
        return None
    if text[1] == "O":
        return 3 if len(text) > 2 else None
    if text[1] != "[":
        return 1
    return next((at + 1 for at in range(2, len(text)) if "@" <= text[at] <= "~"), None)


@contextmanager
def key_by_key(descriptor: int | None) -> Iterator[bool]:
    """Set a terminal to send each key at once, without echo; it is as before afterwards.

    Ctrl-C keeps its signal. Ctrl-Z is off: the shell would be left with the drawn screen.

    Yields:
        Whether there are keys: False without a descriptor, or if it is no terminal.
    """
    if descriptor is None:
        yield False
        return
    try:
        before = termios.tcgetattr(descriptor)
    except (termios.error, OSError):
        yield False
        return
    mode = termios.tcgetattr(descriptor)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    controls = list(mode[6])
    controls[termios.VMIN], controls[termios.VTIME] = 1, 0
    controls[termios.VSUSP] = bytes([os.fpathconf(descriptor, "PC_VDISABLE") & 0xFF])
    mode[6] = controls
    try:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, mode)
        yield True
    finally:
        with suppress(termios.error, OSError):  # the terminal has gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
