"""A console on which names that come from files stay text: a terminal would obey escape sequences in them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from nvtxmoe.terminal_text import harmless


class HarmlessConsole(Console):
    """Prints what a terminal would act on as its escape, such as ``\\x1b``. Styles are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, then spell out what is not to be obeyed."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(harmless(segment.text), segment.style)
