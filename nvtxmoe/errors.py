"""The one error that people see: where, what was found, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike

from nvtxmoe.terminal_text import harmless

BAD_INPUT = 2
INCOMPLETE = 3
GATE_FAILED = 4
#: Characters of what was found, or of what to do, that are shown.
MOST_CHARACTERS = 800


class NvtxmoeError(Exception):
    """Error that the user can act on. The command line prints it as one line and exits with ``exit_code``.

    Parameters:
        what: what was found, as a clause without a final full stop.
        where: the file, table or event it was found in.
        remedy: what to do about it, in the imperative.
        exit_code: the process's exit status, 2 for bad input.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | PathLike[str] | None = None,
        remedy: str | None = None,
        exit_code: int = BAD_INPUT,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.exit_code = exit_code
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Callable[..., NvtxmoeError], tuple[object, ...]]:
        """An error crosses to another process whole."""
        return _rebuilt_error, (type(self), self.what, self.where, self.remedy, self.exit_code)

    def __str__(self) -> str:
        line = " ".join(shortened(self.what).split())
        if self.remedy:
            line = f"{line}. {' '.join(shortened(self.remedy).split())}"
        return f"{self.where}: {line}" if self.where else line

    def _render_traceback_(self) -> list[str]:
        """Return the one line that IPython shows in place of a traceback."""
        return [f"NvtxmoeError: {self}"]


def shortened(text: str) -> str:
    """Return a text for one line: of one longer than MOST_CHARACTERS, which may come from a file, beginning and end.

    Characters that a terminal acts on are escaped (``terminal_text.harmless``), and count as they are shown.
    """
    if len(text) <= MOST_CHARACTERS and len(shown := harmless(text)) <= MOST_CHARACTERS:
        return shown
    begin = _fitting(text)
    end = _fitting(reversed(text[len(begin) :]))[::-1]
    left_out = len(text) - len(begin) - len(end)
    return f"{harmless(''.join(begin))} [{left_out:,} characters left out] {harmless(''.join(end))}"


def _fitting(characters: Iterable[str]) -> list[str]:
    """The first characters of which half of MOST_CHARACTERS are shown."""
    room = MOST_CHARACTERS // 2
    fitting: list[str] = []
    for character in characters:
        room -= len(harmless(character))
        if room < 0:
            break
        fitting.append(character)
    return fitting


def _rebuilt_error(
    kind: type[NvtxmoeError], what: str, where: str | None, remedy: str | None, exit_code: int
) -> NvtxmoeError:
    return kind(what, where=where, remedy=remedy, exit_code=exit_code)


@contextmanager
def located(where: str | PathLike[str], remedy: str) -> Iterator[None]:
    """Add to errors raised inside what those who raise them can't know: the file, and what to do about it."""
    try:
        yield
    except NvtxmoeError as error:
        inner = f"{where}, {error.where}" if error.where else where
        raise NvtxmoeError(error.what, where=inner, remedy=error.remedy or remedy) from error
