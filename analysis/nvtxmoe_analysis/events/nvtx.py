"""Our own rows of NVTX_EVENTS: which domain, which names, which payload bytes."""

from __future__ import annotations

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.formats import schema
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

#: Columns of :func:`read_nvtx`.
COLUMNS = {
    **dict.fromkeys(("start", "end", "eventType", "globalTid", "domainId", "int64Value", "row", "pid"), pl.Int64),
    "name": pl.String,
}


def pid_of(column: str) -> pl.Expr:
    """Process of a globalTid or globalPid: all bits above the thread (``nsys_tables.TID_BITS``)."""
    return pl.col(column) // (1 << nsys_tables.TID_BITS)


def read_nvtx(export: Export) -> pl.DataFrame:
    """Read the ranges and marks of the domain ``nvtxmoe``.

    Returns:
        ``row``, ``start`` and ``end`` (ns), ``eventType``, ``globalTid``, ``pid``, ``domainId``, ``name``,
        ``int64Value``.

    Raises:
        NvtxmoeError: no NVTX events, or none of our domain.
    """
    if not export.has(nsys_tables.NVTX):
        others = [name for name in export.other_tables() if name.startswith(nsys_tables.NVTX.name)]
        if others:
            raise NvtxmoeError(
                f"no table {nsys_tables.NVTX.name}, but {', '.join(others)}, which this nvtxmoe does not read",
                where=export.source,
                remedy="Export the report with an nsys that writes NVTX_EVENTS (2023.4 to 2025.3 do), or read it with "
                "a newer nvtxmoe",
            )
        raise NvtxmoeError(
            "no NVTX_EVENTS in it: the capture recorded no NVTX event",
            where=export.source,
            remedy="Capture again with `nsys profile -t cuda,nvtx` of a program that emits nvtxmoe's events",
        )
    domains = _domains(export)
    ids = sorted(set(domains["domainId"].to_list()))
    columns = ("start", "end", "eventType", "globalTid", "domainId", "text", "textId", "int64Value")
    frame = export.read(nsys_tables.NVTX, columns, only=("domainId", ids), row=True)
    frame = (
        frame.filter(
            pl.col("eventType").is_in([nsys_tables.NVTX_MARK, nsys_tables.NVTX_PUSH_POP, nsys_tables.NVTX_START_END])
        )
        .with_columns(pid=pid_of("globalTid"))
        .join(domains, on=["pid", "domainId"], how="semi", maintain_order="left")
    )
    names = export.strings(frame["textId"].drop_nulls().unique().to_list())
    registered = pl.col("textId").replace_strict(names, default=None, return_dtype=pl.String)
    return frame.with_columns(name=pl.coalesce("text", registered)).drop("text", "textId")


def read_payloads(export: Export, nvtx: pl.DataFrame) -> pl.DataFrame:
    """The rows of :func:`read_nvtx` that have a binary payload, and their ``blob``."""
    blobs = export.read_blobs(nvtx["domainId"].unique().to_list())
    return blobs.join(nvtx, on="row", how="inner", maintain_order="left")


def push_pop(nvtx: pl.DataFrame) -> pl.DataFrame:
    """The push/pop ranges among the rows of :func:`read_nvtx`."""
    return nvtx.filter(pl.col("eventType") == nsys_tables.NVTX_PUSH_POP)


def step_ranges(nvtx: pl.DataFrame) -> pl.DataFrame:
    """The moe.step ranges, in the order in which the rest of the analysis numbers them."""
    return push_pop(nvtx).filter(pl.col("name") == schema.STEP).sort("pid", "start", "row")


def _domains(export: Export) -> pl.DataFrame:
    """(pid, domainId) pairs whose domain is ours; the ids are unique only within a process."""
    rows = export.read(
        nsys_tables.NVTX, ("text", "textId", "globalTid", "domainId"), only=("eventType", [nsys_tables.NVTX_DOMAIN])
    )
    names = export.strings(rows["textId"].drop_nulls().unique().to_list())
    registered = pl.col("textId").replace_strict(names, default=None, return_dtype=pl.String)
    rows = rows.select(pid_of("globalTid").alias("pid"), "domainId", pl.coalesce("text", registered).alias("name"))
    moe_domains = rows.filter(pl.col("name") == schema.DOMAIN).drop_nulls().unique(["pid", "domainId"])
    if moe_domains.is_empty():
        others = sorted(set(rows["name"].drop_nulls().to_list()))
        domains_text = f"domains found: {', '.join(others)}" if others else "no NVTX domain at all"
        raise NvtxmoeError(
            f"no events of the NVTX domain {schema.DOMAIN} ({domains_text})",
            where=export.source,
            remedy="Capture a program that emits nvtxmoe's events; nsys 2023.4 records none of nvtx 0.2.14 and newer",
        )
    return moe_domains.select("pid", "domainId")
