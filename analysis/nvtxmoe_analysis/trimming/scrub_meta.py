"""Remove hosts, users and paths from ``moe.meta``. Its length in bytes stays, so payloads stay valid."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe.formats.word_payloads import message
from nvtxmoe_analysis.events.binary_payloads import SIZE_BYTES
from nvtxmoe_analysis.events.word_payloads import assemble

#: Keys of schema 1 whose texts may be shared. Other keys are kept only if their value holds no text.
KNOWN_KEYS = frozenset({
    "schema", "nvtxmoe", "vllm", "torch", "device", "rank", "world_size", "tp_rank", "tp_size", "ep_rank",
    "ep_size", "dp_rank", "dp_size", "sample_every", "layers", "run_id", "model", "pid", "clock",
    "payload_encoding", "recording", "emit", "held_bytes", "num_physical_experts", "expert_bytes", "block_m",
    "eplb", "overhead", "capture", "recomputed_tokens", "ambiguous_tokens",
})  # fmt: skip
_RUN_ID = re.compile(r"[0-9a-f-]*")


def scrub_blob(blob: bytes, where: str) -> bytes:
    """Return a binary ``moe.meta`` payload without host and paths, of the same length.

    Parameters:
        blob: header and data, as in NVTX_EVENTS.binaryData.
        where: the place to name in an error.

    Raises:
        NvtxmoeError: the payload isn't the JSON of a ``moe.meta``, so what it holds is unknown.
    """
    start = int.from_bytes(blob[24:32], "little") if len(blob) >= 32 else len(blob)
    # The text alone (`bytes` payloads), or after its length (arrays).
    if int.from_bytes(blob[start : start + SIZE_BYTES], "little") == len(blob) - start - SIZE_BYTES:
        start += SIZE_BYTES
    return blob[:start] + scrub_text(blob[start:], where)


def scrub_words(marks: pl.DataFrame, where: str) -> dict[int, int]:
    """Return new int64 payloads, by row, of the marks that spell ``moe.meta``.

    Words of an incomplete payload become zeros; its first word, the length, stays.

    Parameters:
        marks: word marks of all events: ``row``, ``globalTid``, ``start``, ``name``, ``int64Value``.
    """
    spelled = marks.filter(pl.col("name") == message("meta"))
    # The order in which they were put together.
    ordered = marks.sort("globalTid", "start", "row")
    position = dict(zip(ordered["row"].to_list(), range(len(ordered)), strict=True))
    rows = ordered["row"].to_list()
    known: dict[int, int] = {}
    for row, name, blob in assemble(marks).events.select("row", "name", "blob").iter_rows():
        if name != schema.META:
            continue
        words = np.frombuffer(scrub_text(blob, where), "<i8").tolist()
        first = position[row]
        known.update(zip(rows[first : first + 1 + len(words)], [len(words), *words], strict=True))
    return known | _blanked(ordered, known, set(spelled["row"].to_list()))


def _blanked(ordered: pl.DataFrame, known: dict[int, int], meta_rows: set[int]) -> dict[int, int]:
    """Return values for broken payloads: the first mark of each keeps a possible length, all others are zero."""
    blank: dict[int, int] = {}
    run: int | None = None  # the thread of the broken payload that the last mark belongs to
    for tid, row, value in ordered.select("globalTid", "row", "int64Value").iter_rows():
        if row not in meta_rows or row in known:
            run = None
            continue
        # An impossible length stays impossible, whatever bytes it was.
        blank[row] = 0 if run == tid else max(-1, min(value if value is not None else -1, 1 << 31))
        run = tid
    return blank


def scrub_text(text: bytes, where: str) -> bytes:
    """Return the JSON without host and paths, padded to its length with spaces; unchanged if it has none."""
    try:
        raw = json.loads(text.rstrip(b"\0"))
    except ValueError as error:
        raise NvtxmoeError(
            f"moe.meta isn't JSON ({error}), so what it gives away is unknown",
            where=where,
            remedy="Export the report again, or share nothing of it",
        ) from error
    if not isinstance(raw, dict):
        raise NvtxmoeError(f"moe.meta isn't a JSON object but {type(raw).__name__}", where=where)
    clean = _scrub(raw)
    if clean == raw:
        return text
    scrubbed = json.dumps(clean, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    if len(scrubbed) > len(text):
        raise NvtxmoeError(f"moe.meta would grow from {len(text)} to {len(scrubbed)} bytes", where=where)
    return scrubbed.ljust(len(text), b" ")


def _scrub(raw: dict[str, Any]) -> dict[str, Any]:
    known_keys = {k: v for k, v in raw.items() if k in KNOWN_KEYS or (k != "host" and not _holds_text(v))}
    clean = {k: _without_paths(_without_messages(v) if k == "capture" else v) for k, v in known_keys.items()}
    run_id = clean.get("run_id")
    # It may be made of a host's or a user's name: a digest tells runs apart as well.
    if isinstance(run_id, str) and not _RUN_ID.fullmatch(run_id):
        clean["run_id"] = hashlib.sha256(run_id.encode()).hexdigest()[: len(run_id)]
    return clean


def _without_messages(capture: Any) -> Any:
    """Keep only the kind of error of failed hooks: the message is free text."""
    if not isinstance(capture, dict) or not isinstance(capture.get("failures"), dict):
        return capture
    return {**capture, "failures": {hook: str(why).partition(":")[0] for hook, why in capture["failures"].items()}}


def _without_paths(value: Any) -> Any:
    """Cut every text to its last path component."""
    if isinstance(value, str):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items()}
    return [_without_paths(v) for v in value] if isinstance(value, list) else value


def _holds_text(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return any(map(_holds_text, value)) if isinstance(value, list) else isinstance(value, str)
