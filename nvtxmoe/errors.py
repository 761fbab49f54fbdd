"""The one error that people see: where, what was found, what to do."""

from __future__ import annotations

from os import PathLike

BAD_INPUT = 2
INCOMPLETE = 3


class NvtxmoeError(Exception):
    """Something the user can act on. The command line prints it as one line and exits with ``exit_code``.

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

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        if self.remedy:
            line = f"{line}. {self.remedy}"
        return " ".join(line.split())
