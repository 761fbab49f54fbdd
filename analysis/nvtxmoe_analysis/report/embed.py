"""Embed data and scripts in an HTML page: columns as JSON, escaped scripts, a Content-Security-Policy."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl


def columns_of(frame: pl.DataFrame) -> dict[str, Any]:
    """Return a frame by columns, as the page's script reads it: texts as positions in a list of distinct texts.

    Whole floats become integers; infinity and NaN become null.
    """
    columns: dict[str, list[Any]] = {}
    texts: dict[str, list[str]] = {}
    for name in frame.columns:
        values = frame[name]
        if values.dtype == pl.String:
            texts[name] = values.drop_nulls().unique(maintain_order=True).to_list()
            position = {text: i for i, text in enumerate(texts[name])}
            columns[name] = [None if text is None else position[text] for text in values.to_list()]
        else:
            columns[name] = [_short(value) for value in values.to_list()]
    return {"length": len(frame), "columns": columns, "texts": texts}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return a frame as rows that JSON can hold."""
    return [{name: _short(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]


def json_in_html(value: object) -> str:
    """Return JSON for a script element: no character in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_in_html(text: str) -> str:
    """Return a script whose texts can't end its script element."""
    return re.sub(r"</(?=script)|<!--(?=)", lambda match: match[0].replace("<", "\\x3C"), text, flags=re.IGNORECASE)


def policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy that runs only these scripts and loads nothing."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = ["default-src 'none'", f"script-src {hashes}", "style-src 'unsafe-inline'", "img-src data: blob:"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def chart_of(spec: Mapping[str, Any], data: Mapping[str, pl.DataFrame], renderer: str) -> dict[str, Any]:
    """Return the data that the page's script needs to draw a chart."""
    return {"spec": spec, "data": {name: columns_of(frame) for name, frame in data.items()}, "renderer": renderer}
