"""JSON that capture wrote, as text that can be written again."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: bytes, **options: Any) -> Any:
    """Parse JSON; half a character (a lone surrogate, which JSON can spell and UTF-8 cannot) becomes U+FFFD.

    Parameters:
        options: of ``json.loads``.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is too deep.
    """
    value = json.loads(text, **options)
    return _whole(value) if b"\\ud" in text.lower() else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
