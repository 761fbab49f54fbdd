"""What a check says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PASS, WARN, FAIL, NOT_APPLICABLE = "pass", "warn", "fail", "not_applicable"

JsonValue = int | float | str | bool | None | list["JsonValue"] | dict[str, "JsonValue"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        status: ``pass``; ``warn`` (worth knowing); ``fail`` (the capture is incomplete); ``not_applicable``.
        message: one sentence for people.
        evidence: the numbers behind it.
    """

    name: str
    status: str
    message: str
    evidence: Mapping[str, JsonValue] = field(default_factory=dict)


def passed(name: str, message: str, **evidence: JsonValue) -> Check:
    """A check that found nothing wrong."""
    return Check(name, PASS, message, evidence)


def failed(name: str, message: str, **evidence: JsonValue) -> Check:
    """A check that found the capture incomplete."""
    return Check(name, FAIL, message, evidence)


def warned(name: str, message: str, **evidence: JsonValue) -> Check:
    """A check that found something worth knowing."""
    return Check(name, WARN, message, evidence)


def not_applicable(name: str, message: str, **evidence: JsonValue) -> Check:
    """A check that had nothing to look at."""
    return Check(name, NOT_APPLICABLE, message, evidence)
