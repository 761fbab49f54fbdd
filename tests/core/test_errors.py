"""Texts of errors fit a line, however long and odd what they tell of is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.errors import MOST_CHARACTERS, NvtxmoeError, shortened
from nvtxmoe.terminal_text import harmless


@given(st.text(max_size=40), st.integers(1, 400), st.text(max_size=40))
def test_what_is_shown_is_bounded_and_nothing_acts_on_a_terminal(begin: str, times: int, end: str) -> None:
    text = begin + "\x00é\x1b" * times + end
    short = shortened(text)
    assert len(short) <= MOST_CHARACTERS + len(" [1,234,567 characters left out] ")
    assert harmless(short) == short
    if len(harmless(text)) <= MOST_CHARACTERS:
        assert short == harmless(text)
    else:
        shown_begin, _, rest = short.partition(" [")
        left_out, _, shown_end = rest.partition(" characters left out] ")
        assert harmless(text).startswith(shown_begin)
        assert harmless(text).endswith(shown_end)
        assert 0 < int(left_out.replace(",", "")) <= len(text)


def test_an_error_of_a_thousand_escaped_characters_is_a_line() -> None:
    line = str(NvtxmoeError("\x00" * 1000, where="file", remedy="Export it again"))
    assert "\n" not in line
    assert len(line) < MOST_CHARACTERS + 100
