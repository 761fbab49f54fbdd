"""Small exports built row by row, for what no shared capture holds.

Table and column names are those of an Nsight Systems 2025.3 SQLite export; payloads are encoded as nvtx and nsys
encode them (32-byte header, schema tables).
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema, word_payloads

DOMAIN_ID = 1
CATEGORIES = {"layer": 1, "phase": 2, "meta": 3, "step": 4, "counts": 5, "topk": 6}

TABLES = {
    "StringIds": "id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL",
    "META_DATA_EXPORT": "name TEXT NOT NULL, value TEXT",
    "META_DATA_CAPTURE": "name TEXT NOT NULL, value TEXT",
    "PROCESSES": "globalPid INTEGER, pid INTEGER, name TEXT",
    "TARGET_INFO_SESSION_START_TIME": "utcEpochNs INTEGER, utcTime TEXT, localTime TEXT",
    "TARGET_INFO_GPU": "id INTEGER NOT NULL, name TEXT",
    "DIAGNOSTIC_EVENT": "timestamp INTEGER NOT NULL, severity INTEGER NOT NULL, text TEXT NOT NULL",
    "NVTX_EVENTS": "start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, category INTEGER, text TEXT, "
    "globalTid INTEGER, textId INTEGER, domainId INTEGER, int64Value INTEGER, binaryData TEXT",
    "NVTX_PAYLOAD_SCHEMAS": "domainId INTEGER, schemaId INTEGER, name TEXT, type INTEGER, flags INTEGER, "
    "numEntries INTEGER, payloadSize INTEGER, alignTo INTEGER",
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": "domainId INTEGER NOT NULL, schemaId INTEGER NOT NULL, idx INTEGER NOT NULL, "
    "flags INTEGER, type INTEGER, name TEXT, description TEXT, arrayOrUnionDetail INTEGER, offset INTEGER",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER, "
    "correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL",
    "CUPTI_ACTIVITY_KIND_KERNEL": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, demangledName INTEGER NOT NULL, "
    "graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL, "
    "copyKind INTEGER NOT NULL, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_MEMSET": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL, graphNodeId INTEGER",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL, "
    "streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, graphId INTEGER",
    "CUDA_GRAPH_NODE_EVENTS": "start INTEGER NOT NULL, end INTEGER NOT NULL, globalTid INTEGER, "
    "nameId INTEGER NOT NULL, graphNodeId INTEGER NOT NULL, originalGraphNodeId INTEGER",
}

_NUMPY_TYPES = {"<i8": 17, "<i4": 15, "<u2": 14, "<u4": 16, "<f4": 43, "|u1": 12}


class Export:
    """An export under construction; ``save`` writes it. Times are ns, handed out by a clock that only goes on."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self.strings: dict[str, int] = {}
        self.now = 1000
        self.add("META_DATA_EXPORT", name="EXPORT_PRODUCT_VERSION", value="2025.3.2.0")
        self.add("META_DATA_EXPORT", name="EXPORT_SCHEMA_VERSION", value="3.20.3")
        self.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=1_700_000_000_000_000_000)

    def add(self, table: str, **row: Any) -> dict[str, Any]:
        """Append a row and return it, so that a test can change it."""
        self.rows[table].append(row)
        return row

    def string(self, text: str) -> int:
        """Id of a string."""
        return self.strings.setdefault(text, len(self.strings) + 1)

    def tick(self, ns: int = 10) -> int:
        """Let time pass, return it."""
        self.now += ns
        return self.now

    def save(self, path: Path) -> Path:
        """Write the SQLite file. As in nsys's lazy exports, tables without rows are left out."""
        self.rows["StringIds"] = [{"id": i, "value": s} for s, i in self.strings.items()]
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA synchronous = OFF")  # nothing of a test has to survive a loss of power
        for name, declaration in TABLES.items():
            rows = self.rows[name]
            if not rows:
                continue
            connection.execute(f'CREATE TABLE "{name}" ({declaration})')
            columns = [part.split()[0] for part in declaration.split(", ")]
            marks = ", ".join("?" * len(columns))
            connection.executemany(
                f'INSERT INTO "{name}" VALUES ({marks})', [[row.get(c) for c in columns] for row in rows]
            )
        connection.commit()
        connection.close()
        return path


class Process:
    """One worker of a run: one thread that pushes ranges and launches work."""

    def __init__(
        self,
        export: Export,
        *,
        pid: int = 100,
        rank: int = 0,
        world_size: int = 1,
        tp_size: int = 1,
        layers: int = 2,
        experts: int = 4,
        top_k: int = 2,
        encoding: str = "binary",
        meta: dict[str, Any] | None = None,
        schema_base: int = 1 << 32,
        machine: int = 1,
    ) -> None:
        self.export, self.pid, self.rank, self.experts, self.top_k = export, pid, rank, experts, top_k
        self.layers, self.encoding = layers, encoding
        # ``machine`` stands for what nsys has above the process id: hardware, or a virtual machine.
        self.tid = (machine << 48) | (pid << 24) | pid
        self.global_pid = (machine << 48) | (pid << 24)
        self.correlation = 0
        self._schemas: dict[Any, int] = {}
        self._next_schema = schema_base
        export.add("PROCESSES", globalPid=self.global_pid, pid=pid, name="python3")
        self.nvtx(75, schema.DOMAIN)
        self.meta: dict[str, Any] = {
            "schema": 1,
            "nvtxmoe": "0.1.0",
            "vllm": "0.26.0",
            "torch": "2.11.0",
            "device": "a device",
            "rank": rank,
            "world_size": world_size,
            "tp_rank": rank % tp_size,
            "tp_size": tp_size,
            "ep_rank": 0,
            "ep_size": 1,
            "sample_every": 0,
            "layers": [
                {"layer": n, "name": f"layers.{n}", "num_experts": experts, "top_k": top_k, "local_experts": None}
                for n in range(layers)
            ],
            **(meta or {}),
        }

    # NVTX ----------------------------------------------------------------------------------------------------------

    def nvtx(self, kind: int, name: str, end: int | None = None, **more: Any) -> dict[str, Any]:
        """A row of NVTX_EVENTS at the current time."""
        return self.export.add(
            "NVTX_EVENTS",
            **{
                "start": self.export.tick(),
                "end": end,
                "eventType": kind,
                "globalTid": self.tid,
                "textId": self.export.string(name),
                "domainId": DOMAIN_ID,
                **more,
            },
        )

    def send_meta(self) -> None:
        """The moe.meta mark."""
        text = json.dumps(self.meta).encode()
        self.mark("meta", np.frombuffer(text, np.uint8))

    def mark(self, event: str, payload: np.ndarray[Any, Any]) -> None:
        """A mark in the process's encoding. A 0-d struct is a static schema, an array a dynamic one."""
        if self.encoding == "words":
            for message, word in word_payloads.marks(event, payload.tobytes()):
                self.nvtx(34, message, int64Value=word)
            return
        self.nvtx(34, f"moe.{event}", binaryData=self.blob(payload), category=CATEGORIES.get(event))

    def blob(self, payload: np.ndarray[Any, Any]) -> bytes:
        """Header and data as nsys exports them."""
        data = payload.tobytes()
        if payload.ndim:
            data = struct.pack("<Q", len(payload)) + data
            ident = self._dynamic(payload.dtype)
        else:
            ident = self._static(payload.dtype)
        return struct.pack("<4Q", 1, ident, len(data), 32) + data

    def _new(self, key: Any, kind: int, size: int | None, entries: Sequence[dict[str, Any]]) -> int:
        if key in self._schemas:
            return self._schemas[key]
        ident = self._next_schema
        self._next_schema += 1
        self._schemas[key] = ident
        self.export.add(
            "NVTX_PAYLOAD_SCHEMAS",
            domainId=DOMAIN_ID, schemaId=ident, name="", type=kind, numEntries=len(entries), payloadSize=size,
        )  # fmt: skip
        for index, entry in enumerate(entries):
            self.export.add("NVTX_PAYLOAD_SCHEMA_ENTRIES", domainId=DOMAIN_ID, schemaId=ident, idx=index, **entry)
        return ident

    def _static(self, dtype: np.dtype[Any]) -> int:
        entries = []
        for index, (name, (field, offset, *_)) in enumerate(dtype.fields.items() if dtype.fields else []):
            base, shape = field.subdtype or (field, ())
            entry = {"type": _NUMPY_TYPES[base.str], "name": name, "offset": offset if index else None, "flags": 0}
            if shape:
                entry |= {"flags": 16, "arrayOrUnionDetail": shape[0]}
            entries.append(entry)
        if not entries:
            entries = [{"type": _NUMPY_TYPES[dtype.str], "name": dtype.name, "flags": 0}]
        return self._new(dtype, 1, dtype.itemsize, entries)

    def _dynamic(self, dtype: np.dtype[Any]) -> int:
        element = self._static(dtype)
        entries = [{"type": 22 - 4, "name": "size", "flags": 0}, {"type": element, "name": "data", "flags": 48}]
        return self._new(("dynamic", dtype), 2, None, entries)

    @contextmanager
    def range(self, name: str, value: int | None = None, blob: bytes | None = None) -> Iterator[dict[str, Any]]:
        """A push/pop range around what the caller does."""
        row = self.nvtx(59, name, int64Value=value, binaryData=blob)
        yield row
        row["end"] = self.export.tick()

    @contextmanager
    def step(self, step: int, tokens: int = 3, prefill: int = 0) -> Iterator[dict[str, Any]]:
        """A moe.step range."""
        payload = np.array((step, self.rank, tokens, 1, prefill, tokens - prefill, 0), dtype=schema.STEP_DTYPE)
        if self.encoding == "words":
            with self.range(schema.STEP, value=step) as row:
                self.mark("step", payload)
                yield row
            return
        with self.range(schema.STEP, blob=self.blob(payload)) as row:
            yield row

    @contextmanager
    def layer(self, layer: int) -> Iterator[dict[str, Any]]:
        """A moe.layer.N range."""
        with self.range(f"{schema.LAYER_PREFIX}{layer}", layer) as row:
            yield row

    def phase(self, phase: str, layer: int) -> AbstractContextManager[dict[str, Any]]:
        """A phase range (also ``collective``)."""
        return self.range(f"moe.{phase}", layer)

    def counts(self, step: int, layer: int, counts: Sequence[int], tokens: int = 3, event: str = "counts") -> None:
        """A moe.counts mark."""
        dtype = schema.counts_dtype(len(counts))
        self.mark(event, np.array((step, layer, self.rank, tokens, self.top_k, list(counts)), dtype=dtype))

    def counts_of_layers(
        self, step: int, counts: Sequence[Sequence[int]], tokens: int = 3, event: str = "counts", first: int = 0
    ) -> None:
        """One moe.counts mark of several layers, the first of which has this number."""
        rows = [(step, first + at, self.rank, tokens, self.top_k, list(one)) for at, one in enumerate(counts)]
        self.mark(event, np.array(rows, dtype=schema.counts_dtype(len(counts[0]))))

    def topk(self, step: int, layer: int, experts: Sequence[Sequence[int]]) -> None:
        """A moe.topk mark; the weights are 1/2, 1/4, ..."""
        weights = [2.0 ** -(i + 1) for i in range(len(experts[0]))]
        rows = [(step, layer, token, list(chosen), weights) for token, chosen in enumerate(experts)]
        self.mark("topk", np.array(rows, dtype=schema.topk_dtype(len(experts[0]))))

    # CUDA ----------------------------------------------------------------------------------------------------------

    def call(self, name: str = "cudaLaunchKernel_v7000", returned: int = 0) -> int:
        """A runtime call at the current time; its correlation id."""
        self.correlation += 1
        start = self.export.tick()
        self.export.add(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start,
            end=self.export.tick(2),
            globalTid=self.tid,
            correlationId=self.correlation,
            nameId=self.export.string(name),
            returnValue=returned,
        )
        return self.correlation

    def kernel(
        self, ns: int = 100, name: str = "k", *, correlation: int | None = None, node: int | None = None,
        start: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """A kernel, by default launched eagerly now."""
        correlation = self.call() if correlation is None else correlation
        start = self.export.now + 1000 if start is None else start
        return self.export.add(
            "CUPTI_ACTIVITY_KIND_KERNEL",
            **self._activity(start, ns, correlation, node),
            demangledName=self.export.string(name),
        )

    def memcpy(self, ns: int = 50, *, correlation: int | None = None, node: int | None = None) -> dict[str, Any]:
        """A host-to-device copy."""
        correlation = self.call("cudaMemcpyAsync_v3020") if correlation is None else correlation
        row = self._activity(self.export.now + 1000, ns, correlation, node)
        return self.export.add("CUPTI_ACTIVITY_KIND_MEMCPY", **row, bytes=8, copyKind=1)

    def memset(self, ns: int = 20, *, correlation: int | None = None, node: int | None = None) -> dict[str, Any]:
        """A memset."""
        correlation = self.call("cudaMemsetAsync_v3020") if correlation is None else correlation
        row = self._activity(self.export.now + 1000, ns, correlation, node)
        return self.export.add("CUPTI_ACTIVITY_KIND_MEMSET", **row, bytes=8)

    def _activity(self, start: int, ns: int, correlation: int, node: int | None) -> dict[str, Any]:
        return {
            "start": start, "end": start + ns, "deviceId": 0, "streamId": 7, "correlationId": correlation,
            "globalPid": self.global_pid, "graphNodeId": node,
        }  # fmt: skip

    def create_node(self, node: int) -> dict[str, Any]:
        """The creation of a graph node, at the current time."""
        at = self.export.tick()
        return self.export.add(
            "CUDA_GRAPH_NODE_EVENTS",
            start=at, end=at, globalTid=self.tid, nameId=self.export.string("create"), graphNodeId=node,
        )  # fmt: skip

    def clone_node(self, clone: int, original: int) -> None:
        """Instantiation: the replayed id has two rows, one of which names its original."""
        self.create_node(clone)
        self.create_node(clone)["originalGraphNodeId"] = original


def simple_run(
    export: Export, *, steps: int = 3, kernels: int = 1, counts_together: bool = False, **process: Any
) -> Process:
    """A whole little run: eager layers, every launch with its kernel, counts of every (step, layer), samples.

    With ``counts_together`` a mark has the counts of all layers of a step.
    """
    worker = Process(export, **process | {"meta": {"sample_every": 1 if steps else 0, **(process.get("meta") or {})}})
    worker.send_meta()
    experts, k = worker.experts, worker.top_k
    for step in range(steps):
        with worker.step(step):
            worker.kernel(name="attention")
            for layer in range(worker.layers):
                with worker.layer(layer), worker.phase("experts", layer):
                    for _ in range(kernels):
                        worker.kernel(100 * (layer + 1), name="fused_moe")
        counted: list[list[int]] = []
        for layer in range(worker.layers):
            tokens = [[(token + layer + i) % experts for i in range(k)] for token in range(3)]
            counted.append(np.bincount(np.ravel(tokens), minlength=experts).tolist())
            if not counts_together:
                worker.counts(step, layer, counted[-1])
            worker.topk(step, layer, tokens)
        if counts_together:
            worker.counts_of_layers(step, counted)
    return worker


def send_meta_as_bytes(export: Export) -> None:
    """Give an export's ``moe.meta`` the payload that ``bytes`` get: a text of fixed length, with its own schema."""
    mark = next(row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string("moe.meta"))
    text = mark["binaryData"][40:]
    mark["binaryData"] = struct.pack("<4Q", 1, 77, len(text), 32) + text
    export.add("NVTX_PAYLOAD_SCHEMAS", domainId=1, schemaId=77, type=1, numEntries=1, payloadSize=len(text))
    export.add(
        "NVTX_PAYLOAD_SCHEMA_ENTRIES",
        domainId=1, schemaId=77, idx=0, flags=16, type=32, name="bytes", arrayOrUnionDetail=len(text),
    )  # fmt: skip
