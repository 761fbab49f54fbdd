"""Results as the report reads them: frames and documents, and the reason for each that can't be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.outputs.read import Results
from nvtxmoe_analysis.outputs.registry import declarations, tables
from nvtxmoe_analysis.report.document_shapes import OTHER, fits

Value = TypeVar("Value")

#: Why a run that was recorded without nsys has no tables of GPU work.
NO_GPU = "the run was recorded without nsys, which gives no GPU time"


class Source:
    """A results folder. Absent or damaged files raise no error here: the report lists them.

    Attributes:
        loaded: the folder's frames.
        absent: the reason by frame or document that was asked for and could not be used.
    """

    def __init__(self, loaded: Results) -> None:
        self.loaded = loaded
        self.absent: dict[str, str] = {}
        self._computed: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], Value]) -> Value:
        """Return what is computed once of these results, whichever finding asks first."""
        if name not in self._computed:
            self._computed[name] = compute()
        return cast(Value, self._computed[name])

    def frame(self, name: str, columns: Iterable[str] = (), *, rows: bool = True) -> pl.DataFrame | None:
        """A frame of ``outputs.registry.tables``, or None where it is absent, damaged, has no row (unless it need have
        none), or lacks one of these columns, as in a folder of an older version; the reason is then in ``absent``."""
        try:
            frame = self.loaded.frame(name)
        except NvtxmoeError as error:
            self._without(name, _clause(error))
            return None
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            self._without(name, f"it has no column {', '.join(missing)}: another version of nvtxmoe wrote it")
        elif rows and frame.is_empty():
            self._without(name, "it has no row")
        else:
            cut = self._cut(name, frame)
            if not cut:
                return frame
            self._without(name, cut)
        return None

    def _cut(self, name: str, frame: pl.DataFrame) -> str:
        """Return the evidence that a table lacks rows at its end; empty if there is none."""
        if not self.loaded.ends_in_line(name):
            return "it is damaged: its last line is cut"
        if name != "activations":
            return ""
        totals = [layer.get("total_activations") for layer in self.document("summary").values()]
        if totals and all(isinstance(total, int) for total in totals):
            counted, total = frame["activation_count"].sum(), sum(totals)
            if counted < total:
                return f"it is damaged: it counts {counted:,} of the {total:,} assignments of {self.file('summary')}"
        return ""

    def document(self, name: str) -> dict[str, Any]:
        """A JSON document; empty where it is absent or damaged, with the reason in ``absent``."""
        try:
            document = self.loaded.document(name)
        except NvtxmoeError as error:
            self._without(name, _clause(error))
            return {}
        if not fits(name, document):
            self._without(name, OTHER)
            return {}
        return document

    def why(self, name: str) -> str:
        """Return why a frame or document can't be used, as a clause."""
        return self.absent.get(name, "it is not there")

    def file(self, name: str) -> str:
        """The file name of a frame or document; of an absent one, what it would be."""
        path = self.loaded.path(name)
        if path is not None:
            return path.name
        declared = declarations()[name]
        return f"{declared.stem}.{declared.forms[-1]}"

    @property
    def direct(self) -> bool:
        """True if the validation file shows that the run was recorded without nsys."""
        validation = self.document("validation")
        return "coverage" in validation and validation["coverage"] is None

    def _without(self, name: str, reason: str) -> None:
        gpu = name in tables() and tables()[name].gpu
        if gpu and not self.loaded.has(name) and self.direct:
            reason = NO_GPU
        self.absent[name] = f"{self.file(name)}: {reason}" if self.file(name) not in reason else reason


def _clause(error: NvtxmoeError) -> str:
    """Return an error and its remedy as a clause."""
    return f"{error.what}. {error.remedy}" if error.remedy else error.what
