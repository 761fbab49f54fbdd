"""A chart of the report as a picture in a notebook's cell."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from nvtxmoe_analysis.report.chart import Drawing, Missing

if TYPE_CHECKING:
    import polars as pl


class NotebookChart:
    """A chart: as the last value of a cell it shows itself as PNG, whose texts have the widths it was laid out for.

    Attributes:
        name: of the chart's module.
        title: as on the page.
        spec: Vega-Lite without data; empty if the chart cannot be drawn.
        reason: why it cannot be drawn; empty if it can.
    """

    def __init__(self, name: str, title: str, made: Drawing | Missing, spec: Mapping[str, Any]) -> None:
        self.name = name
        self.title = title
        self.spec = spec
        self.reason = made.reason if isinstance(made, Missing) else ""
        self._made = made

    def __repr__(self) -> str:
        return f"{self.title}. {self.text}"

    @property
    def text(self) -> str:
        """Description of the chart in words, or the reason why it cannot be drawn."""
        return self._made.alt if isinstance(self._made, Drawing) else self._made.reason

    @property
    def caption(self) -> str:
        """Files and columns of the chart; empty if it cannot be drawn."""
        return self._made.caption if isinstance(self._made, Drawing) else ""

    @property
    def data(self) -> Mapping[str, pl.DataFrame]:
        """Frames that the chart draws, by the names in ``spec``."""
        return self._made.data if isinstance(self._made, Drawing) else {}

    @property
    def svg(self) -> str:
        """The chart as SVG; empty if it cannot be drawn."""
        return self._images.get("svg", b"").decode()

    @property
    def png(self) -> bytes:
        """The chart as PNG, with two pixels per pixel of the SVG; empty if it cannot be drawn."""
        return self._images.get("png", b"")

    @cached_property
    def _images(self) -> dict[str, bytes]:
        if not isinstance(self._made, Drawing):
            return {}
        from nvtxmoe_analysis.report.images import image_files  # noqa: PLC0415  only when it is drawn

        files = image_files(self.name, self.spec, self._made.data)
        return {name.rpartition(".")[2]: content for name, content in files.items()}

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the forms of the chart by MIME type, and their metadata. None of them loads anything."""
        plain = {"text/plain": repr(self)}
        if not isinstance(self._made, Drawing):
            return {**plain, "text/html": f"<p><b>{escape(self.title)}</b>: {escape(self.reason)}</p>"}, {}
        from nvtxmoe_analysis.report.images import PNG_SCALE  # noqa: PLC0415

        width, height = struct.unpack(">II", self.png[16:24])
        size = {"width": width // PNG_SCALE, "height": height // PNG_SCALE}
        return {**plain, "image/png": self.png}, {"image/png": {**size, "alt": self.text}}
