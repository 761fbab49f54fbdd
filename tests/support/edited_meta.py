"""Copies of SQLite exports whose moe.meta says something else."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

MARKS = (
    "SELECT NVTX_EVENTS.rowid, CAST(binaryData AS BLOB) FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId "
    "WHERE eventType = 34 AND coalesce(text, value) = 'moe.meta'"
)


def edited_meta(source: Path, out: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Copy an export and let ``edit`` change each binary moe.meta in place."""
    shutil.copyfile(source, out)
    with closing(sqlite3.connect(out)) as connection, connection:
        for row, blob in connection.execute(MARKS).fetchall():
            start = blob.index(b"{")
            meta = json.loads(blob[start:])
            edit(meta)
            text = json.dumps(meta).encode()
            size = (8 + len(text)).to_bytes(8, "little")
            body = len(text).to_bytes(8, "little") + text
            connection.execute(
                "UPDATE NVTX_EVENTS SET binaryData = ? WHERE rowid = ?", (blob[:16] + size + blob[24:32] + body, row)
            )
    return out


def with_sizes(meta: dict[str, Any], **sizes: Any) -> None:
    """Give every layer these keys."""
    for layer in meta["layers"]:
        layer.update(sizes)
