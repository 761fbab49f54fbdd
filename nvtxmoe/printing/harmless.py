"""A console on which names that come from files stay text: a terminal would obey escape sequences in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

#: Categories of characters that a terminal acts on: control, format (direction of text), surrogates, line separators.
_ACTED_ON = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class HarmlessConsole(Console):
    """Prints what a terminal would act on as its escape, such as ``\\x1b``. Styles are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, then spell out what is not to be obeyed."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable() or segment.text == "\n":
                yield segment
            else:
                yield Segment(harmless(segment.text), segment.style)


def harmless(text: str) -> str:
    """Return a text with its escapes in place of characters that a terminal acts on; line ends and tabs stay."""
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _ACTED_ON else c.encode("unicode_escape").decode()
        for c in text
    )
