"""Texts that come from files or servers, made fit for a terminal: it would obey escape sequences in them."""

from __future__ import annotations

import unicodedata

#: Categories of characters that a terminal acts on: control, format (direction of text), surrogates, line separators.
_ACTED_ON = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def harmless(text: str, *, keep: str = "\n\t") -> str:
    r"""Return a text with escapes such as ``\x1b`` in place of characters that a terminal acts on.

    Parameters:
        keep: characters that stay all the same; ``""`` gives one line.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in _ACTED_ON else c.encode("unicode_escape").decode()
        for c in text
    )
