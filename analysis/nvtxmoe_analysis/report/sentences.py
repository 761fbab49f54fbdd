"""Sentences of numbers that keep their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from nvtxmoe_analysis.report.numbers import SourcedNumber


@dataclass(frozen=True)
class Sentence:
    """Text with numbers in it.

    Attributes:
        parts: texts and numbers in order.
    """

    parts: tuple[str | SourcedNumber, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    @property
    def numbers(self) -> list[SourcedNumber]:
        """The numbers in order."""
        return [part for part in self.parts if isinstance(part, SourcedNumber)]


def sentence(template: str, *values: SourcedNumber | Sentence | str | int) -> Sentence:
    """Fill a template: each ``{}`` is replaced by the next value. Values that are no ``SourcedNumber`` become text.

    Raises:
        ValueError: more values than ``{}``.
    """
    parts: list[str | SourcedNumber] = []
    unused = list(values)
    for text, hole, _, _ in Formatter().parse(template):
        if text:
            parts.append(text)
        if hole is not None:
            value = unused.pop(0)
            parts += (
                value.parts
                if isinstance(value, Sentence)
                else [value if isinstance(value, SourcedNumber) else str(value)]
            )
    if unused:
        raise ValueError(f"more values than places in {template!r}")
    return Sentence(tuple(parts))


def together(clauses: Sequence[Sentence]) -> Sentence:
    """Join clauses as ``a, b and c``."""
    parts: list[str | SourcedNumber] = []
    for i, clause in enumerate(clauses):
        if i:
            parts.append(" and " if i == len(clauses) - 1 else ", ")
        parts += clause.parts
    return Sentence(tuple(parts))
