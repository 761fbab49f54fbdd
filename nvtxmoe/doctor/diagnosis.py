"""One thing that was looked at, and what about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        topic: what was looked at.
        level: ``ok``; ``note``, worth knowing; ``problem``, a capture can't work.
        what: as a sentence without a final full stop.
        remedy: what to do about it, in the imperative; None where there is nothing to do.
        details: figures behind it, for JSON.
    """

    topic: str
    level: str
    what: str
    remedy: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
