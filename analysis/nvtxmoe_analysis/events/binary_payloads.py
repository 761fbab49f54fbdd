"""Self-describing NVTX payloads: from the schema tables of an export to numpy.

A payload is a 32-byte little-endian header (u64 1, u64 schemaId, u64 size in bytes, u64 offset of the data) and
the data, laid out as NVTX_PAYLOAD_SCHEMAS and NVTX_PAYLOAD_SCHEMA_ENTRIES of the same domain say. A 0-d numpy
struct is a static schema; an array is a dynamic one: a u64 element count, then the elements.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export

HEADER_BYTES = 32
HEADER_DTYPE = np.dtype([("version", "<u8"), ("schema", "<u8"), ("size_bytes", "<u8"), ("offset_bytes", "<u8")])
SIZE_BYTES = 8

#: What to do about a damaged payload.
REMEDY = "Export the report again with --include-blobs=true; if the payload is damaged there too, capture again"

#: Types of numpy are smaller than this.
MOST_BYTES = 1 << 31
#: Definitions of one schema, and ways to put those of its fields together; capture has a few for each process.
MOST_LAYOUTS = 256
#: Schemas inside one another. numpy's are two deep.
MOST_DEPTH = 32

#: Schema type of arrays; a struct has 1.
DYNAMIC = 2
FIXED_ARRAY, LENGTH_ARRAY = 16, 48
NESTED_FROM = 1 << 24

#: Payload entry types as exports name them (docs/reference/nsys.md lists those that were seen).
CHAR_TYPES = frozenset({1, 25, 32})
PRIMITIVES: dict[int, str] = {
    1: "S1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<i8", 8: "<u8", 9: "<i8", 10: "<u8",
    11: "<i1", 12: "<u1", 13: "<i2", 14: "<u2", 15: "<i4", 16: "<u4", 17: "<i8", 18: "<u8",
    19: "<f4", 20: "<f8", 22: "<u8", 25: "S1", 32: "S1", 42: "<f2", 43: "<f4", 44: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How to read the data of one schema: ``dtype`` of the struct or, if ``dynamic``, of each element."""

    dtype: np.dtype[np.generic]
    dynamic: bool


@dataclass(frozen=True)
class _Entry:
    flags: int
    type: int
    name: str
    detail: int | None
    offset: int | None


@dataclass(frozen=True)
class _Definition:
    schema: int
    kind: int
    size_bytes: int | None
    entries: tuple[_Entry, ...]


class Decoder:
    """Decodes the binary payloads of one export.

    The schema tables have no process column, so one (domainId, schemaId) may be defined once a process. Identical
    definitions count once; where two differ, sizes decide which one a payload has, else it is an error.

    Parameters:
        skips: whether damaged payloads are left out and kept in ``damaged``; else the first one is an error.

    Attributes:
        damaged: rows that were left out: ``row`` if they have one, ``name``, ``start``, ``what`` is wrong.
    """

    def __init__(self, export: Export, *, skips: bool = False) -> None:
        self._source = export.source
        self._skips = skips
        self.damaged: list[dict[str, Any]] = []
        self.first_error: NvtxmoeError | None = None
        self._definitions = _read_definitions(export)
        self._layouts: dict[tuple[int, int], list[Layout]] = {}
        self._depth = 0

    def groups(self, blobs: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, npt.NDArray[Any]]]:
        """Decode blobs, those of one schema and size together.

        Parameters:
            blobs: ``domainId`` (Int64), ``blob`` (Binary), and any further columns.

        Yields:
            (rows, array): ``rows`` a part of ``blobs`` without the bytes; ``array`` of shape (rows,) for a static
            schema, (rows, elements) for a dynamic one.

        Raises:
            NvtxmoeError: a damaged header, an unknown or ambiguous schema, data of the wrong size.
        """
        sized = blobs.with_columns(length=pl.col("blob").bin.size().cast(pl.Int64))
        for key, rows in sized.group_by("domainId", "length", maintain_order=True):
            domain, length = (int(k) for k in key)
            about = rows.drop("blob", "length")
            if length < HEADER_BYTES:
                self._leave_out(about, f"{length} bytes, shorter than a payload's header")
                continue
            payload_bytes = joined(rows["blob"]).reshape(len(rows), length)
            header = payload_bytes[:, :HEADER_BYTES].copy().view(HEADER_DTYPE)[:, 0]
            right = self._right_headers(header, length, about)
            for schema, offset in np.unique(header[right][["schema", "offset_bytes"]]).tolist():
                rows_of_schema = np.flatnonzero(
                    right & (header["schema"] == schema) & (header["offset_bytes"] == offset)
                )
                all_rows = len(rows_of_schema) == len(rows)
                data = np.ascontiguousarray(
                    payload_bytes[:, offset:] if all_rows else payload_bytes[rows_of_schema, offset:]
                )
                part = about if all_rows else about[rows_of_schema]
                yield from self._of_one_schema(domain, schema, data, part)

    def _of_one_schema(
        self, domain: int, schema: int, data: npt.NDArray[np.uint8], part: pl.DataFrame
    ) -> Iterator[tuple[pl.DataFrame, npt.NDArray[Any]]]:
        layout = self._choose(domain, schema, data, part)
        if layout is None:
            return
        right = self._right_counts(layout, data, part)
        if right.all():
            yield part, self._array(layout, data)
        elif right.any():
            yield part.filter(pl.Series(right)), self._array(layout, np.ascontiguousarray(data[right]))

    def _right_headers(self, header: npt.NDArray[np.void], length: int, about: pl.DataFrame) -> npt.NDArray[np.bool_]:
        offset = header["offset_bytes"]
        fits = (offset >= HEADER_BYTES) & (offset <= length)
        fits &= header["size_bytes"] == length - np.where(fits, offset, 0).astype(np.int64)
        right: npt.NDArray[np.bool_] = fits & (header["version"] == 1)
        for at in np.flatnonzero(~right).tolist():
            version, _, size_bytes, begin = header[at].tolist()
            self._leave_out(
                about[at : at + 1],
                f"header says version {version}, {size_bytes} bytes of data at {begin}, but {length} bytes are there",
            )
        return right

    def _choose(self, domain: int, schema: int, data: npt.NDArray[np.uint8], rows: pl.DataFrame) -> Layout | None:
        size_bytes = data.shape[1]
        known = self._all_layouts(domain, schema)
        if not known:
            self._leave_out(rows, f"payload schema {schema} is not among NVTX_PAYLOAD_SCHEMAS of its domain")
            return None
        # Only the count of a dynamic one differs from payload to payload.
        samples = {payload.tobytes() for payload in _distinct_counts(data)}
        fitting = [layout for layout in known if any(_fits(layout, size_bytes, sample) for sample in samples)]
        if not fitting:
            self._leave_out(rows, f"{size_bytes} bytes fit no definition of payload schema {schema}")
            return None
        # A nested schema of another process may leave a hole where the right one fills its place.
        least = min(_padding_bytes(layout.dtype) for layout in fitting)
        fitting = [layout for layout in fitting if _padding_bytes(layout.dtype) == least]
        if len(fitting) > 1:
            self._leave_out(
                rows, f"payload schema {schema} is defined in {len(fitting)} ways that fit {size_bytes} bytes"
            )
            return None
        return fitting[0]

    def _right_counts(self, layout: Layout, data: npt.NDArray[np.uint8], rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
        """Whether each payload has as many elements as it says, [rows]."""
        if not layout.dynamic:
            return np.ones(len(data), dtype=np.bool_)
        counts = data[:, :SIZE_BYTES].copy().view("<u8")[:, 0]
        elements = (data.shape[1] - SIZE_BYTES) // layout.dtype.itemsize
        right: npt.NDArray[np.bool_] = counts == elements
        for at in np.flatnonzero(~right).tolist():
            self._leave_out(rows[at : at + 1], f"says {counts[at]} elements where {elements} are")
        return right

    def _array(self, layout: Layout, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """``data``, uint8 [rows, bytes], as the layout has it."""
        if not layout.dynamic:
            return data.reshape(-1).view(layout.dtype)
        if data.shape[1] - SIZE_BYTES < layout.dtype.itemsize:
            return np.zeros((len(data), 0), dtype=layout.dtype)
        only: npt.NDArray[Any] = np.ascontiguousarray(data[:, SIZE_BYTES:]).view(layout.dtype)
        return only

    def _all_layouts(self, domain: int, schema: int) -> list[Layout]:
        key = (domain, schema)
        if key not in self._layouts:
            self._layouts[key] = []  # a schema that contains itself has no layout
            self._depth += 1
            if self._depth > MOST_DEPTH:
                raise self._bad_schema(schema, f"lies {self._depth} schemas deep")
            layouts = [layout for d in self._definitions.get(key, ()) for layout in self._compile(domain, d)]
            self._depth -= 1
            self._layouts[key] = list(dict.fromkeys(layouts))
            if len(self._layouts[key]) > MOST_LAYOUTS:
                raise self._bad_schema(schema, f"is defined in {len(self._layouts[key]):,} ways")
        return self._layouts[key]

    def _bad_schema(self, schema: int, what: str) -> NvtxmoeError:
        where = f"{self._source}, table {nsys_tables.PAYLOAD_SCHEMAS.name}"
        return NvtxmoeError(f"damaged: payload schema {schema} {what}", where=where, remedy=REMEDY)

    def _compile(self, domain: int, definition: _Definition) -> list[Layout]:
        choices = [self._entry_dtypes(domain, entry) for entry in definition.entries]
        if definition.kind == DYNAMIC:
            # numpy arrays: entry 0 the number of elements, entry 1 the elements.
            if len(choices) != 2 or definition.entries[1].flags != LENGTH_ARRAY:
                return []
            return [Layout(element, dynamic=True) for element in choices[1]]
        if math.prod(map(len, choices)) > MOST_LAYOUTS:
            ways = math.prod(map(len, choices))
            raise self._bad_schema(definition.schema, f"has fields that are defined in {ways:.3g} ways together")
        layouts = (_struct(definition, fields) for fields in product(*choices))
        return [Layout(dtype, dynamic=False) for dtype in layouts if dtype is not None]

    def _entry_dtypes(self, domain: int, entry: _Entry) -> list[np.dtype[np.generic]]:
        if entry.type >= NESTED_FROM:
            base = [nested.dtype for nested in self._all_layouts(domain, entry.type) if not nested.dynamic]
        elif entry.type in PRIMITIVES:
            base = [np.dtype(PRIMITIVES[entry.type])]
        else:
            return []
        if entry.flags != FIXED_ARRAY:
            return base
        length = entry.detail or 0
        if not 0 <= length < MOST_BYTES:
            return []
        if entry.type in CHAR_TYPES:
            return [np.dtype(f"S{length}")]
        return [np.dtype((b, (length,))) for b in base if b.itemsize * length < MOST_BYTES]

    def _leave_out(self, rows: pl.DataFrame, what: str) -> None:
        """Leave damaged payloads out, or raise."""
        error = self._bad(rows, what)
        if not self._skips:
            raise error
        self.first_error = self.first_error or error
        self.damaged += [{**row, "what": what} for row in rows.iter_rows(named=True)]

    def _bad(self, rows: pl.DataFrame, what: str) -> NvtxmoeError:
        row = rows.row(0, named=True)
        name, start = row.get("name") or "an event", row.get("start")
        at = f" at {start} ns" if start is not None else ""
        return NvtxmoeError(
            f"damaged payload of {name}{at}: {what}",
            where=f"{self._source}, table NVTX_EVENTS",
            remedy=REMEDY,
        )


def joined(blobs: pl.Series) -> npt.NDArray[np.uint8]:
    """All bytes of a binary column, one value after the other."""
    # Large binary, which has one buffer of all bytes; a cast to it would import pyarrow.compute.
    column = blobs.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    if len(column) == 0:
        return np.zeros(0, dtype=np.uint8)
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return content[bounds[0] : bounds[-1]]


def _distinct_counts(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The distinct beginnings of SIZE_BYTES or fewer of payloads, uint8 [rows, bytes]."""
    beginnings = np.ascontiguousarray(data[:, :SIZE_BYTES])
    if beginnings.shape[1] < SIZE_BYTES:
        return beginnings[:1]  # no count: only their size matters
    return np.unique(beginnings.view("<u8")[:, 0]).view(np.uint8).reshape(-1, SIZE_BYTES)


def _fits(layout: Layout, size_bytes: int, sample: bytes) -> bool:
    item_bytes = layout.dtype.itemsize
    if item_bytes == 0:
        return False
    if not layout.dynamic:
        return size_bytes == item_bytes
    if size_bytes < SIZE_BYTES:
        return False
    count = int.from_bytes(sample[:SIZE_BYTES], "little")
    return size_bytes - SIZE_BYTES == count * item_bytes


def _padding_bytes(dtype: np.dtype[Any]) -> int:
    """Bytes of a value that belong to no field."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _padding_bytes(base) * math.prod(shape)
    if dtype.fields is None:
        return 0
    fields = [field for field, *_ in dtype.fields.values()]
    tail_bytes = dtype.itemsize - sum(field.itemsize for field in fields)
    return tail_bytes + sum(map(_padding_bytes, fields))


def _struct(definition: _Definition, fields: tuple[np.dtype[np.generic], ...]) -> np.dtype[np.generic] | None:
    """The struct's dtype, or None where the fields overlap or overrun: then these are not its nested schemas."""
    if len(fields) == 1 and not definition.entries[0].offset:
        only = fields[0]
        if definition.size_bytes is not None and only.itemsize != definition.size_bytes:
            return None
        # A schema of one unnamed or merely type-named field stands for the field itself.
        return only
    offsets: list[int] = []
    end = 0
    for entry, field in zip(definition.entries, fields, strict=True):
        offset = entry.offset if entry.offset is not None else end
        if offset < end:
            return None
        offsets.append(offset)
        end = offset + field.itemsize
    size_bytes = definition.size_bytes if definition.size_bytes is not None else end
    names = [entry.name or f"f{i}" for i, entry in enumerate(definition.entries)]
    if end > size_bytes or size_bytes >= MOST_BYTES or len(set(names)) < len(names):
        return None
    return np.dtype({"names": names, "formats": list(fields), "offsets": offsets, "itemsize": size_bytes})


def _read_definitions(export: Export) -> dict[tuple[int, int], list[_Definition]]:
    schemas = export.read(nsys_tables.PAYLOAD_SCHEMAS)
    entries = export.read(nsys_tables.PAYLOAD_ENTRIES)
    bodies: dict[tuple[int, int], list[list[_Entry]]] = defaultdict(list)
    for row in entries.iter_rows(named=True):
        body = bodies[(row["domainId"], row["schemaId"])]
        if row["idx"] == 0 or not body:  # the next process's definition of the same id begins
            body.append([])
        body[-1].append(
            _Entry(row["flags"] or 0, row["type"] or 0, row["name"] or "", row["arrayOrUnionDetail"], row["offset"])
        )
    definitions: dict[tuple[int, int], dict[_Definition, None]] = defaultdict(dict)
    seen: dict[tuple[int, int], int] = defaultdict(int)
    for row in schemas.iter_rows(named=True):
        key = (row["domainId"], row["schemaId"])
        fields = bodies[key][seen[key]] if seen[key] < len(bodies[key]) else []
        seen[key] += 1
        if fields:
            definitions[key][_Definition(row["schemaId"], row["type"], row["payloadSize"], tuple(fields))] = None
    return {key: list(layouts) for key, layouts in definitions.items()}
